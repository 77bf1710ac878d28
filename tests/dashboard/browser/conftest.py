"""The dashboard as people see it: a process of its own, a queue at work, and Debian's Chromium driven by Playwright."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser as Chromium
from playwright.async_api import BrowserContext, Page, async_playwright, expect

import servers
from dashboard.serving import PREFIX, Board, serving
from helpers import queue_at
from streams_queue import Queue

ARTEFACTS = Path(__file__).parents[2] / ".artefacts" / "dashboard"
PATIENCE = 20_000
"""Milliseconds after which what a page should show by now is a failure."""

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_LISTEN = """
document.addEventListener("securitypolicyviolation", event =>
    complained(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Chromium]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium here: Debian has it under that name")
    expect.set_options(timeout=PATIENCE)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, headless=True, args=_ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture(scope="module")
def board(server: servers.AnyServer, chromium: Chromium) -> Iterator[Board]:
    """The dashboard of most tests. Every test begins with an empty database."""
    with serving(server) as board:
        yield board


@pytest.fixture
def prefix() -> str:
    """The one queue that the dashboard shows, new in each test."""
    return PREFIX


@pytest.fixture
async def queue(server: servers.AnyServer) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, PREFIX) as queue:
        yield queue


Visit = Callable[..., Awaitable[Page]]


@pytest.fixture
async def complaints() -> AsyncIterator[list[str]]:
    """What pages of this test did that none should: whatever stands in it at the end fails the test."""
    found: list[str] = []
    yield found
    assert not found, "\n".join(found)


@pytest.fixture
async def visit(chromium: Chromium, complaints: list[str]) -> AsyncIterator[Visit]:
    """Opens an address in a browser of its own, without history and cookies: `scripts`, `scheme` and `width` say how.

    It listens for violations of the content policy, errors, dialogs, and requests to anywhere else.
    """
    async with AsyncExitStack() as stack:

        async def visit(
            address: str,
            *,
            scheme: str = "light",
            width: int = 1280,
            height: int = 900,
            scripts: bool = True,
            **options: Any,
        ) -> Page:
            context = await stack.enter_async_context(
                await chromium.new_context(
                    color_scheme=scheme,  # type: ignore[arg-type]
                    java_script_enabled=scripts,
                    reduced_motion="reduce",
                    viewport={"width": width, "height": height},
                    **options,
                )
            )
            context.set_default_timeout(PATIENCE)
            await _listen(context, address, complaints)
            page = await context.new_page()
            await page.goto(address)
            return page

        yield visit


async def _listen(context: BrowserContext, address: str, complaints: list[str]) -> None:
    home = re.sub(r"(https?://[^/]+).*", r"\1/", address)

    def complain(words: str) -> None:
        complaints.append(words)

    async def dismiss(dialog: Any) -> None:
        complaints.append(f"dialog: {dialog.message}")
        await dialog.dismiss()

    def hear(message: Any) -> None:
        # An answer of 4xx is an error to the console, and what some tests ask for.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            complaints.append(f"console: {message.text}")

    await context.expose_function("complained", complain)
    await context.add_init_script(_LISTEN)
    context.on("console", hear)
    context.on("dialog", dismiss)
    context.on("weberror", lambda error: complaints.append(f"script: {error.error}"))
    context.on(
        "request",
        lambda request: None if request.url.startswith(home) else complaints.append(f"asked for {request.url}"),
    )


Shoot = Callable[..., Awaitable[Path]]


@pytest.fixture
def shoot(request: pytest.FixtureRequest) -> Shoot:
    """Keeps a picture of the page among the artefacts, and prints where."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    test = request.node.name.removeprefix("test_")

    async def shoot(page: Page, what: str = "", *, whole: bool = True) -> Path:
        name = re.sub(r"\W+", "-", f"{test} {what}").strip("-")
        path = ARTEFACTS / f"{name}.png"
        await page.screenshot(path=path, full_page=whole)
        print(path)
        return path

    return shoot
