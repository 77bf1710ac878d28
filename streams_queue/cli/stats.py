"""`streams-queue stats`: a queue's counts, once or as a live view."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import anyio
import msgspec
import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from streams_queue.cli.options import EXIT_CODES, Json, Prefix, Url, on_queue
from streams_queue.cli.output import console, facts_table, print_facts, print_json, say
from streams_queue.cli.terminal import FAILED, fail
from streams_queue.errors import QueueUnavailable
from streams_queue.model import Stats
from streams_queue.queue import Queue
from streams_queue.redaction import printable

EVERY = 2.0
"""Seconds between two looks, unless told otherwise."""

EPILOG = f"""\
\b
Examples:
  streams-queue stats --prefix orders
  streams-queue stats --prefix orders --watch 5
  streams-queue stats --prefix orders --json | jq .dead

{EXIT_CODES}"""


def stats(
    prefix: Prefix = None,
    url: Url = None,
    as_json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="A live view until Ctrl-C; with --json, a line a look.")
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Argument(min=0.1, metavar="SECONDS", help=f"With --watch: from one look to the next ({EVERY:g})."),
    ] = None,
) -> None:
    """Count the messages: where they stand now, and since the queue began."""
    if seconds is not None and not watch:
        fail("SECONDS goes with --watch")
    if watch:
        # Ctrl-C is how it ends; so does a supervisor's signal, and the terminal has its cursor back.
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        with contextlib.suppress(KeyboardInterrupt):
            on_queue(prefix, url, lambda queue: _watch(queue, seconds or EVERY, as_json))
        return
    found = on_queue(prefix, url, Queue.stats)
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        print_facts(list(_facts(found)))


def _facts(stats: Stats) -> Iterator[tuple[str, str]]:
    for name, value in msgspec.to_builtins(stats).items():
        if name in {"died", "edits"}:  # they stand among the counters
            continue
        if isinstance(value, dict):  # the counters
            yield from ((str(counter), str(count)) for counter, count in sorted(value.items()))
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif name == "oldest_waiting":
            yield name, "none" if value is None else f"{value:.1f} s"
        else:
            yield name, str(value)


async def _watch(queue: Queue[dict[str, Any]], seconds: float, as_json: bool) -> None:
    if as_json or not sys.stdout.isatty():
        while True:
            found = await queue.stats()
            if as_json:
                print_json(msgspec.to_builtins(found))
            else:
                say(f"{time.strftime('%H:%M:%S')}  {'  '.join(f'{name} {value}' for name, value in _facts(found))}")
            await anyio.sleep(seconds)
    with Live(console=console(), auto_refresh=False, screen=False) as view:
        while sys.stdout.isatty():  # until it is closed: rich goes on without a word then, and draws nothing
            view.update(await _picture(queue, seconds), refresh=True)
            await anyio.sleep(seconds)
    raise typer.Exit(FAILED)


async def _picture(queue: Queue[dict[str, Any]], seconds: float) -> Group:
    title = f"{queue.keys.prefix} at {time.strftime('%H:%M:%S')}, every {seconds:g} s, Ctrl-C ends"
    try:
        facts = list(_facts(await queue.stats()))
    except QueueUnavailable as error:  # it comes back, or the watcher leaves
        return Group(Text(title), Text(printable(str(error)), style="red"))
    return Group(Text(title), facts_table(facts))
