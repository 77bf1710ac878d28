"""The commands that change a queue: `enqueue`, `priority`, `remove`, `pause`, `resume`."""

import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer

from streams_queue.cli.durations import duration, time
from streams_queue.cli.options import EXIT_CODES, Json, Prefix, Url, Yes, on_queue, queue_name
from streams_queue.cli.output import (
    Column,
    Listing,
    Record,
    confirm,
    outcomes_of,
    print_json,
    progress,
    remark,
    say,
)
from streams_queue.cli.terminal import FAILED, MISUSED, fail
from streams_queue.door import BATCH
from streams_queue.errors import Rejected, StreamsQueueError
from streams_queue.model import Receipt
from streams_queue.queue import Queue

ENQUEUE_EPILOG = f"""\
\b
Examples:
  streams-queue enqueue '{{"sku": "A-1"}}' --prefix orders --id order-1
  streams-queue enqueue '{{"sku": "A-1"}}' --prefix orders --delay 15m --ttl 2h
  streams-queue enqueue - --prefix orders < orders.jsonl

\b
With - every line of standard input is a JSON object, a message of its own.
They are checked and written 500 at a time. Other users of the machine see
arguments: give a payload that holds a secret by standard input.

{EXIT_CODES}"""

REMOVE_EPILOG = f"""\
\b
Examples:
  streams-queue remove order-1 order-2 --prefix orders
  streams-queue remove order-1 --prefix orders --yes

\b
A handler that works on a removed message is cancelled.

{EXIT_CODES}"""

PRIORITY_EPILOG = f"""\
\b
Example:
  streams-queue priority order-1 high --prefix orders

\b
The message takes the place of a new arrival among those of that priority. One
that waits for a retry or a due time goes on waiting.

{EXIT_CODES}"""

PAUSE_EPILOG = f"""\
\b
Example:
  streams-queue pause --prefix orders

\b
Workers finish what they hold and take nothing new until `resume`. Enqueueing
goes on.

{EXIT_CODES}"""

RESUME_EPILOG = f"""\
\b
Example:
  streams-queue resume --prefix orders

{EXIT_CODES}"""

_BATCH_BYTES = 4 << 20

_RECEIPT = (
    Column("id", lambda row: row["id"]),
    Column("status", lambda row: row["status"]),
    Column("", lambda row: "duplicate" if row["duplicate"] else ""),
)


class PriorityName(StrEnum):
    """The priorities, as an option takes them."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


def enqueue(
    payload: Annotated[str, typer.Argument(metavar="JSON|-", help="A JSON object, or - for lines of standard input.")],
    prefix: Prefix = None,
    url: Url = None,
    as_json: Json = False,
    id: Annotated[str | None, typer.Option(metavar="ID", help="A name of your own; a UUID without.")] = None,
    priority: Annotated[PriorityName, typer.Option(help="Which messages go first.")] = PriorityName.NORMAL,
    delay: Annotated[
        float | None, typer.Option(parser=duration, metavar="TIME", help="How long it stays out of line, as in 15m.")
    ] = None,
    at: Annotated[
        float | None,
        typer.Option(parser=time, metavar="TIME", help="When it comes into line, as in 2026-12-24T18:00:00+01:00."),
    ] = None,
    unique_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Of unfinished messages with this key there is one.")
    ] = None,
    ttl: Annotated[
        float | None, typer.Option(parser=duration, metavar="TIME", help="How long it may wait, as in 2h.")
    ] = None,
) -> None:
    """Put messages in the queue."""
    options: dict[str, Any] = {"priority": priority.value, "delay": delay, "at": at, "ttl": ttl}
    if payload == "-":
        if id is not None or unique_key is not None:
            fail("--id and --unique-key are for one message, which stands in the command", MISUSED)
        on_queue(prefix, url, lambda queue: _enqueue_lines(queue, options, as_json))
        return
    data = _object(payload, "the payload")
    receipt = on_queue(prefix, url, lambda queue: queue.enqueue(data, id=id, unique_key=unique_key, **options))
    if as_json:
        print_json(_record(receipt))
    else:
        say(f"{receipt.id} {receipt.status.value}{' duplicate' if receipt.duplicate else ''}")


async def _enqueue_lines(queue: Queue[dict[str, Any]], options: dict[str, Any], as_json: bool) -> None:
    with Listing(_RECEIPT, as_json=as_json) as listing, progress("enqueue", None, printing=True) as advance:
        try:
            for batch in _by_size(_lines()):
                payloads = [_object(line, f"line {number}") for number, line in batch]
                receipts = await queue.enqueue_many(payloads, **options)
                listing.add([_record(receipt) for receipt in receipts])
                advance(len(receipts))
        except (StreamsQueueError, typer.Exit) as error:
            if isinstance(error, Rejected):
                listing.add([_record(receipt) for receipt in error.receipts if receipt is not None])
            remark(f"the first {listing.length} messages are in the queue")
            raise


def _lines() -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in enumerate(sys.stdin.buffer, 1) if line.strip())


def _by_size(lines: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """The lines in lists of at most 500, and not much more than 4 MiB."""
    for first in lines:
        batch, size = [first], len(first[1])
        while size < _BATCH_BYTES and len(batch) < BATCH and (more := next(lines, None)):
            batch.append(more)
            size += len(more[1])
        yield batch


def _object(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        fail(f"{what} is no JSON: {error}", MISUSED)
    if not isinstance(found, dict):
        fail(f'{what} is no JSON object, as in {{"sku": "A-1"}}; with - every line is one', MISUSED)
    return found


def _record(receipt: Receipt) -> Record:
    return {"id": receipt.id, "status": receipt.status.value, "duplicate": receipt.duplicate}


def remove(
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="The messages' ids.", show_default=False)],
    prefix: Prefix = None,
    url: Url = None,
    as_json: Json = False,
    yes: Yes = False,
) -> None:
    """Take messages out, wherever they stand."""
    ids = list(dict.fromkeys(ids))
    messages = f"{len(ids)} message{'s' * (len(ids) > 1)}"
    confirm(f"remove {messages} from {queue_name(prefix)} for good", yes=yes)
    removed = on_queue(prefix, url, lambda queue: queue.transitions.remove(ids))
    with outcomes_of(as_json=as_json) as tell:
        tell(ids, ["removed" if done else "missing" for done in removed])
    if not all(removed):
        raise typer.Exit(FAILED)


def priority(
    id: Annotated[str, typer.Argument(metavar="ID", help="The message's id.", show_default=False)],
    priority: Annotated[PriorityName, typer.Argument(help="The one that it gets.", show_default=False)],
    prefix: Prefix = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Give a waiting message another priority."""
    answers = on_queue(prefix, url, lambda queue: queue.transitions.prioritise([id], priority.value))
    with outcomes_of(as_json=as_json) as tell:
        tell([id], answers)
    if not {"changed", "same"}.issuperset(answers):
        raise typer.Exit(FAILED)


def pause(prefix: Prefix = None, url: Url = None, as_json: Json = False) -> None:
    """Have workers take nothing new."""
    on_queue(prefix, url, Queue.pause)
    _print_paused(True, "paused: workers finish what they hold and take nothing new", as_json)


def resume(prefix: Prefix = None, url: Url = None, as_json: Json = False) -> None:
    """Have workers take messages again."""
    on_queue(prefix, url, Queue.resume)
    _print_paused(False, "resumed: workers take messages again", as_json)


def _print_paused(paused: bool, words: str, as_json: bool) -> None:
    if as_json:
        print_json({"paused": paused})
    else:
        say(words)
