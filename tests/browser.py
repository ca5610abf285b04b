"""Chromium for tests, which are skipped where there is none, and what axe-core says of a page; knows no page."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from tools import chromium as installed

AXE = Path(__file__).resolve().parent.parent / "build" / "npm" / "node_modules" / "axe-core" / "axe.min.js"


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """A browser with an empty profile; the test is skipped where there is none."""
    with contextlib.ExitStack() as stack:
        try:
            window = stack.enter_context(installed.chromium(profile))
        except installed.NoBrowser as absent:
            pytest.skip(str(absent))
        yield window


def violations(window: webdriver.Chrome) -> list[str]:
    """The serious and critical accessibility violations that axe-core finds in what is shown."""
    if not AXE.is_file():
        pytest.skip(f"needs axe-core: make {AXE.relative_to(AXE.parents[4]).parent}")
    window.execute_script(AXE.read_text("utf-8"))
    found = window.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    return [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
