"""Headless Chromium for what looks at the page: its tests, its benchmark, its screenshots; knows no page."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from data.errors import UserError

# Nothing of the browser's own calls out; --no-sandbox, since programs in containers may run as root.
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


class NoBrowser(UserError):
    """The programs of Debian's packages `chromium` and `chromium-driver` are not on this machine."""

    def __init__(self) -> None:
        next_step = "Debian has both: apt-get install chromium chromium-driver"
        super().__init__("the programs chromium and chromedriver", "none in PATH", next_step)


@contextlib.contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[webdriver.Chrome]:
    """A browser with an empty profile; `NoBrowser`."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        raise NoBrowser
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


def resize(window: webdriver.Chrome, width: int, height: int, mobile: bool = False, scale: float = 1) -> None:
    """Give the page a screen of this size in points, of `scale` pixels each."""
    screen = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def prefer(window: webdriver.Chrome, scheme: str) -> None:
    """Prefer "light" or "dark", as a system does."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def until(window: webdriver.Chrome, condition: Callable[[], Any], told: str, seconds: float = 30.0) -> Any:
    """What `condition` gives once it is true; fails with `told`."""
    waiting = WebDriverWait(window, seconds, 0.05, ignored_exceptions=[StaleElementReferenceException])
    return waiting.until(lambda _: condition(), f"waited for {told}")
