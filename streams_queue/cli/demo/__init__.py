"""`streams-queue demo`: the queue at work, a worker killed, and a ledger that has to add up."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """\
\b
Examples:
  streams-queue demo
  streams-queue demo --input requests.jsonl
  REDIS_URL=redis://localhost:6379/0 streams-queue demo

\b
A line of FILE is a JSON object with at least `message`; `user_id`,
`source_type`, `source_id`, `response_token`, `chat_id`, `chat_type`,
`message_id` may be given.

\b
Without REDIS_URL it starts a server of its own. With it, it uses a prefix of
its own there, and removes its keys in the end.

\b
Exit codes:
  0  the ledger adds up
  1  it does not
  2  wrong arguments or configuration
  3  the server could not be reached
"""


def demo(
    input: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl", exists=True, dir_okay=False, help="Your own messages, one JSON object a line."
        ),
    ] = None,
) -> None:
    """See it at work: chat requests, three workers, one of them killed, and a ledger that adds up."""
    # What only this command needs takes a while to import.
    from streams_queue.cli.demo.command import run  # noqa: PLC0415

    run(input)
