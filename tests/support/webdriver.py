"""A little of the W3C WebDriver protocol: enough to walk over a page in headless Chromium as a person would."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browsers import find
from cdrs_process import free_port, wait_until

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def available() -> bool:
    return find("chromium") is not None and shutil.which("chromedriver") is not None


class WebDriver:
    """One Chromium, driven; everything ends with the context."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._session = ""

    def __enter__(self) -> WebDriver:
        with (self._folder / "chromedriver.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["chromedriver", f"--port={self._port}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._answers, 20, "chromedriver")
        arguments = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--window-size=1400,1000", f"--user-data-dir={self._folder / 'driven-profile'}",
        ]  # fmt: skip
        options = {"binary": find("chromium"), "args": arguments}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._session:
                self._call("DELETE", f"/session/{self._session}")
        finally:
            self._process.terminate()
            self._process.wait(10)

    def open(self, url: str) -> None:
        self._do("POST", "/url", {"url": url})

    def refresh(self) -> None:
        self._do("POST", "/refresh", {})

    def text(self, css: str) -> str:
        return str(self._do("GET", f"/element/{self._find(css)}/text"))

    def texts(self, css: str) -> list[str]:
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", css))

    def click(self, css: str) -> None:
        self._do("POST", f"/element/{self._find(css)}/click", {})

    def fill(self, css: str, text: str) -> None:
        element = self._find(css)
        self._do("POST", f"/element/{element}/clear", {})
        self._do("POST", f"/element/{element}/value", {"text": text})

    def run(self, script: str, *arguments: Any) -> Any:
        return self._do("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._do("GET", "/screenshot")))

    def console_messages(self) -> list[str]:
        """Warnings and errors of the page, content security policy included."""
        entries = self._do("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def wait(self, condition: Callable[[], Any], timeout: float, what: str) -> Any:
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}"
            time.sleep(0.05)
        return value

    def _find(self, css: str) -> str:
        return str(self._do("POST", "/element", {"using": "css selector", "value": css})[_ELEMENT])

    def _do(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._call(method, f"/session/{self._session}{path}", body)

    def _answers(self) -> bool:
        try:
            return bool(self._call("GET", "/status")["ready"])
        except OSError:
            return False

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise AssertionError(f"{method} {path}: {value['error']}: {value['message'][:500]}")
        return value
