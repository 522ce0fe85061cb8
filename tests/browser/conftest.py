"""A page of the real front-end in headless Chromium."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(scope="module")  # its event loop must not outlive the browser tests
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM") or None, args=QUIET)


def opened(browser: Any, url: str, width: int = 1680, height: int = 1000) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(url)
    page.wait_for_function("() => window.app?.graph && window.app.extensionManager", timeout=90_000)
    page.wait_for_function("() => window.LiteGraph?.registered_node_types?.KontextLoadModel", timeout=30_000)
    return page


@pytest.fixture
def page(browser: Any, server: Any) -> Iterator[Page]:
    page = opened(browser, server.url)
    yield page
    page.close()


@pytest.fixture(scope="module")
def one_page(browser: Any, server: Any) -> Iterator[Page]:
    """For tests that only read, one after the other; small, since every pixel is drawn by the processor."""
    page = opened(browser, server.url, 640, 400)
    yield page
    page.close()


@pytest.fixture
def screenshots() -> Path:
    """Where screenshots are kept to be looked at."""
    folder = Path(__file__).resolve().parents[2] / ".dev" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
