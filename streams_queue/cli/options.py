"""What commands on a queue share: their options, opening the queue, and errors that become exit codes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer

from streams_queue.cli.terminal import LogLevel, fail, fail_by, log_to_stderr
from streams_queue.errors import ConfigurationError, StreamsQueueError
from streams_queue.named import NamedQueue
from streams_queue.queue import Queue
from streams_queue.settings import Address, Settings

T = TypeVar("T")

PREFIX = "STREAMS_QUEUE_PREFIX"

EXIT_CODES = """\
\b
Exit codes:
  0  done
  1  it failed, or there is no such message
  2  wrong arguments or configuration
  3  the server could not be reached
  4  refused by a limit of the queue: try again later
"""
"""The end of each command's help."""

Prefix = Annotated[
    str | None,
    typer.Option("--prefix", metavar="P", envvar=PREFIX, help="The queue: what its keys begin with."),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The server, instead of the one that the environment names; all servers of a sharded queue, with blanks "
        "between them.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, say what would be done.")]


def queue_name(prefix: str | None) -> str:
    """The prefix; ends the command where none was given."""
    if not prefix:
        fail(f"which queue? Name it, as in --prefix orders, or set {PREFIX}")
    return prefix


def on_queue(prefix: str | None, url: str | None, job: Callable[[Queue[dict[str, Any]]], Awaitable[T]]) -> T:
    """Open the queue, do the job, close the queue. An error of ours ends the command with its exit code."""
    try:
        return run_on_queue(queue_name(prefix), url, job)
    except StreamsQueueError as error:
        fail_by(error)


def run_on_queue(prefix: str, url: str | None, job: Callable[[Queue[dict[str, Any]]], Awaitable[T]]) -> T:
    """As `on_queue`, for who has more to do after an error.

    Raises:
        StreamsQueueError: whatever the job, or opening the queue, raised.
    """
    log_to_stderr(LogLevel.WARNING)
    return asyncio.run(_opened(prefix, url, job))


async def _opened(prefix: str, url: str | None, job: Callable[[Queue[dict[str, Any]]], Awaitable[T]]) -> T:
    queue = NamedQueue(prefix, url=url)
    refuse_private(queue.settings)
    async with queue:
        return await job(queue)


def refuse_private(settings: Settings) -> None:
    """Nothing, where the server may hold a queue that somebody asks about.

    Raises:
        ConfigurationError: it would be one of this process's own.
    """
    if settings.address == Address("embedded"):
        raise ConfigurationError(
            "embedded:// is a server of this process alone, with nothing in it: name the one that holds the queue, "
            "by --url or for example by REDIS_URL"
        )
