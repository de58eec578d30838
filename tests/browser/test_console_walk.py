"""One walk over /console/ in Chromium, as an operator would do it. A screenshot goes to CDRS_SCREENSHOTS, if set."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess
from webdriver import WebDriver, available
from write_paths import portable_slow

pytestmark = [pytest.mark.browser, pytest.mark.timeout(150)]


@portable_slow
def test_console_walk(tmp_path: Path) -> None:
    if not available():
        if os.environ.get("CDRS_REQUIRE_BROWSERS"):
            pytest.fail("chromium and chromedriver are not installed")
        pytest.skip("chromium and chromedriver are not installed")
    with CdrsProcess(tmp_path / "cdrs", ["--nodes", "3"]).start() as cdrs, WebDriver(tmp_path) as page:
        page.open(f"{cdrs.url}/console/")
        # Every process, each with its state, without a reload.
        page.wait(lambda: len(page.texts("#nodes tr")) == 4, 15, "one gateway and three nodes")
        page.wait(lambda: all(" live" in " " + t for t in page.texts("#nodes .pill")), 15, "all of them live")
        page.wait(lambda: "Live" in page.text("#nodes-note"), 10, "the live table")
        page.wait(lambda: "Live" in page.text("#watching"), 10, "the live box")

        page.fill("#publish [name=stream]", "walk.first")
        page.fill("#publish [name=data]", '{"text": "<b>Grüße</b> & 你好"}')
        page.click("#publish button")
        page.wait(lambda: "Stored" in page.text("#receipt"), 10, "the receipt")
        seen = page.wait(lambda: page.texts("#events li"), 10, "the event in the box")
        assert "walk.first" in seen[0]
        assert "<b>Grüße</b> & 你好" in seen[0], "shown as text, not as markup"

        page.fill("#publish [name=data]", "{not json")
        page.click("#publish button")
        page.wait(lambda: "Stored" not in page.text("#receipt") and page.text("#receipt"), 10, "the refusal")
        assert page.run("return document.getElementById('receipt').className") == "bad"

        page.fill("#watch [name=stream]", "walk.*")
        page.click("#watch button")
        page.wait(lambda: len(page.texts("#events li")) == 1, 10, "the event again, from history")

        # A node dies and comes back: the table tells, and the box goes on.
        os.kill(cdrs.pids("node")[0], signal.SIGKILL)
        page.wait(lambda: any("dead" in t or "suspect" in t for t in page.texts("#nodes .pill")), 10, "its state")
        assert cdrs.publish("walk.second", json.dumps({"n": 2}).encode()).status == 201
        page.wait(lambda: len(page.texts("#events li")) == 2, 10, "an event that others sent")
        folder = os.environ.get("CDRS_SCREENSHOTS")
        page.screenshot(Path(folder or tmp_path) / "console.png")
        page.wait(lambda: page.texts("#nodes .pill").count("live") == 4, 20, "four live processes again")

        # The gateway dies and comes back.
        os.kill(cdrs.pids("gateway")[0], signal.SIGKILL)
        cdrs.wait_ready()
        assert cdrs.publish("walk.third", b"3").status == 201
        page.wait(lambda: len(page.texts("#events li")) == 3, 30, "the box to resume")
        page.wait(lambda: page.texts("#nodes .pill").count("live") == 4, 20, "the table to resume")
        refused = [m for m in page.console_messages() if "Content Security Policy" in m or "Uncaught" in m]
        assert not refused, refused
