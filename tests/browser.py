"""Headless Chromium for tests of the page; knows no page.

Debian's packages `chromium` and `chromium-driver` carry both programs; without them tests are skipped, with the reason.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

AXE = Path(__file__).resolve().parent.parent / "build" / "npm" / "node_modules" / "axe-core" / "axe.min.js"
# Nothing of the browser's own calls out; --no-sandbox, since tests may run as root.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@contextlib.contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[webdriver.Chrome]:
    """A browser with an empty profile; the test is skipped where there is none."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs the programs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = Options()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield window
    finally:
        window.quit()


def resize(window: webdriver.Chrome, width: int, height: int, mobile: bool = False) -> None:
    """Give the page a screen of this size in points."""
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def prefer(window: webdriver.Chrome, scheme: str) -> None:
    """Prefer "light" or "dark", as a system does."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def until(window: webdriver.Chrome, condition: Callable[[], Any], told: str, seconds: float = 30.0) -> Any:
    """What `condition` gives once it is true; fails with `told`."""
    waiting = WebDriverWait(window, seconds, 0.05, ignored_exceptions=[StaleElementReferenceException])
    return waiting.until(lambda _: condition(), f"waited for {told}")


def violations(window: webdriver.Chrome) -> list[str]:
    """The serious and critical accessibility violations that axe-core finds in what is shown."""
    if not AXE.is_file():
        pytest.skip("needs axe-core: npm install --prefix build/npm --no-save axe-core@4.14.1")
    window.execute_script(AXE.read_text("utf-8"))
    found = window.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    return [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
