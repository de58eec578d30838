"""Servers that fan out, and the compiled loader that drains them: what the benches s1, s2 and s3 share.

Every server gets the same core, the loader the other one. CPU is the scheduler's nanosecond clock summed over all
threads of the server's processes; it contains the publishing requests. Frames of the floor F are as long as ours.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cdrs_process import children, environment, free_port, pinned, wait_until
from instructions import counting
from machine import HERE, LOADER_CPUS, SERVER_CPUS, baseline_server, folder, our_server, rss_kib, thread_seconds

BODY_BYTES = 200
STREAM = "bench.fan"
CACHE = HERE.parents[1] / ".cache" / "bench"


@dataclass(frozen=True)
class Server:
    """A server under measurement."""

    name: str
    port: int
    pids: tuple[int, ...]
    events: str
    post: str
    mark: str
    """What a subscriber has seen once it is subscribed."""
    batch: str = ""
    """Where it takes NDJSON, if it does."""
    headers: str = "Content-Type: application/json\r\n"
    """Fields of a POST of one event."""
    around: tuple[str, str] = ("", "")
    """What such a POST has before and behind the event itself."""

    def cpu(self) -> float:
        """Seconds used so far by all its threads."""
        return sum(map(thread_seconds, self.pids))

    def rss(self) -> int:
        """KiB."""
        return sum(map(rss_kib, self.pids))


Opener = Callable[[], AbstractContextManager[Server]]


def compiled(name: str) -> Path:
    """A C program of this folder, built once for each version of the sources."""
    source = HERE / f"{name}.c"
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(HERE.glob("*.c")))).hexdigest()
    built = CACHE / f"{name}-{version[:12]}"
    if not built.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = built.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O2", "-Wall", "-pthread", "-o", str(made), str(source)], check=True)
        made.replace(built)
    return built


def all_descriptors() -> None:
    """As many files as the hard limit allows, for this process and its children."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --- servers -------------------------------------------------------------------------------------


@contextmanager
def floor() -> Iterator[Server]:
    """F: plain send() in C."""
    port = free_port()
    with _running([str(compiled("floor")), str(port), str(ENVELOPE_BYTES)]) as process:
        wait_until(lambda: _listens(port), 10, "the floor")
        yield Server("F", port, (process.pid,), "/", "/", ": welcome", batch="/")


ENVELOPE_BYTES = 124
"""What a CloudEvent adds to a payload in this stream: attributes, a UUID, braces."""


@contextmanager
def ours(write_path: str = "auto", *, name: str = "cdrs") -> Iterator[Server]:
    """`cdrs up`, everything in one process, events with fsync."""
    with our_server(env={"CDRS_SSE__WRITE_PATH": write_path}) as cdrs:
        path = f"/v1/streams/{STREAM}/events"
        assert cdrs.publish(STREAM, b"{}").status == 201  # so that its spread is settled
        batch = f"{path}?receipts=errors"
        yield Server(name, cdrs.port, (cdrs.pid,), path, path, "cdrs.caught-up", batch=batch)


@contextmanager
def naive() -> Iterator[Server]:
    """B0: sse-starlette with a queue per subscriber."""
    with baseline_server() as (port, pid):
        yield Server("B0", port, (pid,), "/events", "/publish", "id: 0")


def peers() -> dict[str, Opener]:
    """Other products, where they were asked for (``--peers``) and can be had: nchan of the distribution's packages,
    Centrifugo and Mercure where they are on PATH."""
    if "CDRS_BENCH_PEERS" not in os.environ:
        return {}
    found: dict[str, Opener] = {"nchan": nchan} if find_nchan() is not None else {}
    found |= {name: opener for name, opener in (("centrifugo", centrifugo), ("mercure", mercure)) if shutil.which(name)}
    return found


def find_nchan() -> tuple[str, str] | None:
    """nginx and the module: installed, else unpacked from the distribution's packages into the cache."""
    modules = ("/usr/lib/nginx/modules/ngx_nchan_module.so", "/usr/share/nginx/modules/ngx_nchan_module.so")
    for module in modules:
        nginx = shutil.which("nginx")
        if nginx and Path(module).exists():
            return nginx, module
    root = CACHE / "nchan"
    found = root / "usr/sbin/nginx", root / modules[0][1:]
    if not all(path.exists() for path in found) and shutil.which("apt-get") and shutil.which("dpkg"):
        root.mkdir(parents=True, exist_ok=True)
        get = ["apt-get", "download", "nginx", "libnginx-mod-nchan"]
        if subprocess.run(get, cwd=root, capture_output=True, check=False).returncode == 0:
            for package in root.glob("*.deb"):
                subprocess.run(["dpkg", "-x", package.name, "."], cwd=root, check=True)
    if not all(path.exists() for path in found):
        return None
    with suppress(PermissionError):  # the module wants nginx's own folder for bodies, whatever its configuration says
        Path("/var/lib/nginx").mkdir(exist_ok=True)
    return str(found[0]), str(found[1])


@contextmanager
def nchan() -> Iterator[Server]:
    """nchan: one worker, messages in memory, its best documented settings."""
    found = find_nchan()
    assert found is not None
    nginx, module = found
    port = free_port()
    with folder() as path:
        config = path / "nginx.conf"
        config.write_text(f"""
load_module {module};
daemon off; master_process on; worker_processes 1; worker_rlimit_nofile 20000; pid {path}/nginx.pid; user root;
error_log {path}/error.log crit;
events {{ worker_connections 19000; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;
  fastcgi_temp_path {path}/fcgi; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /pub {{ nchan_publisher; nchan_channel_id c; nchan_message_buffer_length 1000; }}
    location = /sub {{ nchan_subscriber eventsource; nchan_channel_id c; nchan_subscriber_first_message newest;
                       nchan_subscriber_timeout 0; nchan_eventsource_ping_interval 15; }}
  }}
}}""")
        with _running([nginx, "-p", str(path), "-c", str(config)]) as process:
            wait_until(lambda: _listens(port), 10, "nginx")
            workers = wait_until(lambda: children(process.pid), 10, "nginx's worker")
            yield Server("nchan", port, tuple(workers), "/sub", "/pub", "\r\n\r\n")


@contextmanager
def centrifugo() -> Iterator[Server]:
    """Centrifugo: memory engine, unidirectional SSE, no history, logs and metrics off."""
    port = free_port()
    settings = {
        "http_server": {"address": "127.0.0.1", "port": str(port)},
        "log": {"level": "none"},
        "engine": {"type": "memory"},
        "http_api": {"insecure": True},
        "uni_sse": {"enabled": True},
        "client": {
            "allow_anonymous_connect_without_token": True,
            "allowed_origins": ["*"],
            "ping_interval": "15s",
        },
        "channel": {
            "without_namespace": {"allow_subscribe_for_client": True, "allow_subscribe_for_anonymous": True},
        },
    }
    with folder() as path:
        config = path / "centrifugo.json"
        config.write_text(json.dumps(settings))
        with _running(["centrifugo", "--config", str(config)]) as process:
            wait_until(lambda: _listens(port), 20, "Centrifugo")
            asked = quote(json.dumps({"subs": {"c": {}}}))
            yield Server(
                "centrifugo", port, (process.pid,), f"/connection/uni_sse?cf_connect={asked}", "/api/publish",
                '"subs"', around=('{"channel":"c","data":', "}"),
            )  # fmt: skip


MERCURE_KEY = "a key of thirty-two bytes or more, for a benchmark"


@contextmanager
def mercure() -> Iterator[Server]:
    """Mercure before 1.0: local transport (nothing kept), anonymous subscribers, logs off."""
    port = free_port()
    claims = {"mercure": {"publish": ["*"]}}
    with folder() as path:
        config = path / "Caddyfile"
        config.write_text(f"""
{{
  admin off
  auto_https off
  log {{
    output discard
  }}
}}
http://127.0.0.1:{port} {{
  mercure {{
    transport local
    publisher_jwt "{MERCURE_KEY}" HS256
    anonymous
    heartbeat 15s
    write_timeout 0s
  }}
}}""")
        with _running(["mercure", "run", "--config", str(config)]) as process:
            wait_until(lambda: _listens(port), 20, "Mercure")
            hub, form = "/.well-known/mercure", "Content-Type: application/x-www-form-urlencoded"
            yield Server(
                "mercure", port, (process.pid,), f"{hub}?topic=c", hub, ":",
                headers=f"{form}\r\nAuthorization: Bearer {_token(claims)}\r\n",
                around=("topic=c&data=", ""),
            )  # fmt: skip


def _token(claims: dict[str, Any]) -> str:
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    digest = hmac.digest(MERCURE_KEY.encode(), signed, "sha256")
    return f"{signed.decode()}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


@contextmanager
def _running(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*pinned(SERVER_CPUS), *argv], env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


# --- the loader ----------------------------------------------------------------------------------


class Loader:
    """The compiled loader, with its subscribers open."""

    def __init__(self, process: subprocess.Popen[str], server: Server, subscribers: int) -> None:
        self._process = process
        self._server = server
        self.subscribers = subscribers
        self.opened: dict[str, Any] = self._line()
        assert self.opened["open"] == subscribers, self.opened

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the loader ended"
        said: dict[str, Any] = json.loads(line)
        return said

    def publish(
        self, *, rate: float, seconds: float, batch: int = 1, connections: int = 1, one_by_one: bool = False
    ) -> dict[str, Any]:
        """Publish and drain; what was found, with the server's CPU and instructions of that time (None where they are
        not counted) and its resident memory. In an open loop, unless ``one_by_one``: then an event is published when
        the one before it has reached everybody, so none are joined."""
        return self._command(f"publish {connections} {rate} {seconds} {batch} {one_by_one:d}")

    def _command(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with counting(self._server.pids) as counted:
            before, at = self._server.cpu(), time.monotonic()
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            said = self._line()
            said["cpu"] = self._server.cpu() - before
            said["took"] = time.monotonic() - at
        return said | {"instructions": counted.value, "rss_kib": self._server.rss()}

    def idle(self, seconds: float) -> float:
        """CPU seconds of the server per second while nothing is published."""
        before, at = self._server.cpu(), time.monotonic()
        time.sleep(seconds)
        return (self._server.cpu() - before) / (time.monotonic() - at)

    def cpu(self) -> float:
        """Seconds that the loader itself has used."""
        return thread_seconds(self._process.pid)


class ManyLoader(Loader):
    """The same for streams with few readers (`many.c`)."""

    def rounds(self, count: int, *, batch: int) -> dict[str, Any]:
        """One event to each stream, so often, a second for each round; what was found, with the server's CPU."""
        return self._command(f"rounds {count} {batch}")


@contextmanager
def loading(server: Server, subscribers: int) -> Iterator[Loader]:
    """Open subscribers and wait until every one of them is subscribed."""
    argv = [
        str(compiled("loader")), str(server.port), str(subscribers), server.events, server.post, server.batch,
        server.mark, str(BODY_BYTES),
    ]  # fmt: skip
    told = {"LOADER_HEADERS": server.headers, "LOADER_BEFORE": server.around[0], "LOADER_AFTER": server.around[1]}
    with _loader(argv, told) as process:
        yield Loader(process, server, subscribers)


@contextmanager
def _loader(argv: list[str], told: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    all_descriptors()
    process = subprocess.Popen(
        [*pinned(LOADER_CPUS), *argv], env={**environment(), **(told or {})}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=sys.stderr, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait(5)


@contextmanager
def loading_many(server: Server, subscribers: int, *, group: int, churn: int) -> Iterator[ManyLoader]:
    """Open subscribers that each read a stream of their own and one with the others of their group."""
    argv = [str(compiled("many")), *map(str, (server.port, subscribers, group, BODY_BYTES, churn)), server.mark]
    with _loader(argv) as process:
        yield ManyLoader(process, server, subscribers)


def sound(said: dict[str, Any]) -> bool:
    """Whether every delivery arrived, each once and in order."""
    wrong = said["disorder"] or said["lost"] or said["refused"]
    return said["deliveries"] == said["expected"] and not wrong
