"""Real browsers without a driver: start one on a page, and hear what the page reports by ``fetch``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BROWSERS = {"chromium": ("chromium", "chromium-browser", "google-chrome"), "firefox": ("firefox-esr", "firefox")}
_FIREFOX_PREFERENCES = {
    "browser.aboutwelcome.enabled": False, "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore", "datareporting.policy.dataSubmissionEnabled": False,
    "datareporting.healthreport.uploadEnabled": False, "toolkit.telemetry.enabled": False, "app.update.auto": False,
    "network.captive-portal-service.enabled": False, "network.connectivity-service.enabled": False,
    "browser.safebrowsing.malware.enabled": False, "browser.safebrowsing.phishing.enabled": False,
    "extensions.update.enabled": False, "dom.min_background_timeout_value": 4,
}  # fmt: skip


def find(browser: str) -> str | None:
    """Path of an installed browser, or None."""
    return next((path for name in BROWSERS[browser] if (path := shutil.which(name))), None)


class Browser:
    """One headless browser with a fresh profile, on one page. Its process group ends with the context."""

    def __init__(self, browser: str, folder: Path, url: str) -> None:
        path = find(browser)
        assert path is not None
        profile = folder / f"{browser}-profile"
        profile.mkdir(parents=True)
        if browser == "firefox":
            lines = [f'user_pref("{k}", {json.dumps(v)});\n' for k, v in _FIREFOX_PREFERENCES.items()]
            (profile / "user.js").write_text("".join(lines))
            self._argv = [path, "--headless", "--no-remote", "--profile", str(profile), url]
        else:
            self._argv = [
                path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-dev-shm-usage", f"--user-data-dir={profile}", url,
            ]  # fmt: skip
        self._env = os.environ | {"HOME": str(folder), "MOZ_CRASHREPORTER_DISABLE": "1"}
        self._log = folder / f"{browser}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Browser:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._argv, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A browser that is killed leaves broken connections behind; that is no news."""


class PageServer:
    """Serves one page at ``/``, says at ``/go`` when it may begin, and collects the JSON lists that it posts to
    ``/report``; the latter two for pages of any origin."""

    def __init__(self, page: bytes, port: int = 0) -> None:
        self.go = threading.Event()
        self.reports: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._changed = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/go":
                    self._answer(200 if outer.go.is_set() else 204, b"")
                else:
                    self._answer(200 if path == "/" else 404, page)

            def do_POST(self) -> None:
                reports = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer._changed:
                    # A repeated POST whose answer was lost brings nothing twice.
                    at = round(time.monotonic() - outer._began, 2)
                    outer.reports += [r | {"at": at} for r in reports if r["n"] >= len(outer.reports)]
                    outer._changed.notify_all()
                self._answer(204, b"")

            def _answer(self, status: int, body: bytes) -> None:
                body = body if status == 200 else b""
                self.send_response(status)
                self.send_header("content-type", "text/html; charset=utf-8")
                self.send_header("access-control-allow-origin", "*")
                self.send_header("cache-control", "no-store")
                self.send_header("connection", "close")
                if status != 204:
                    self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self._server = _QuietServer(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        self.origin = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> PageServer:
        threading.Thread(target=self._server.serve_forever, name="page", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, kind: str) -> list[dict[str, Any]]:
        with self._changed:
            return [report for report in self.reports if report["kind"] == kind]

    def wait(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    told = [report for report in self.reports if report["kind"] != "message"]
                    count = len(self.reports) - len(told)
                    raise AssertionError(f"waited {timeout:g} s for {what}; {count} messages, else {told[-20:]}")
                self._changed.wait(min(left, 0.5))
