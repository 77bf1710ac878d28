"""What the `demo` command does: read, play, judge."""

import asyncio
import signal
from pathlib import Path

import typer
from rich.console import Console

from streams_queue.cli.demo.messages import made_up, read
from streams_queue.cli.demo.play import play
from streams_queue.cli.demo.view import print_ledger
from streams_queue.cli.terminal import FAILED, ending_signals, fail_by
from streams_queue.errors import StreamsQueueError

REQUESTS = 300


def run(path: Path | None) -> None:
    """Play the demo with the requests in the file, or with made-up ones."""
    console = Console()
    # As Ctrl-C: the workers end, and the keys go. A demo started in the background had SIGINT ignored so far.
    for number in ending_signals():
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        messages = read(path) if path is not None else made_up(REQUESTS)
        found, ledger = asyncio.run(play(messages, console))
    except StreamsQueueError as error:
        fail_by(error)
    print_ledger(console, found, str(ledger))
    if found.faults:
        raise typer.Exit(FAILED)
