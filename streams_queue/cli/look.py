"""The commands that look at messages: `peek`, `position`, `show`."""

from typing import Annotated, Any

import typer

from streams_queue.cli.options import EXIT_CODES, Json, Prefix, Url, on_queue
from streams_queue.cli.output import Column, Listing, print_facts, print_json, remark, say
from streams_queue.cli.story import facts_of
from streams_queue.cli.terminal import FAILED, fail
from streams_queue.durations import spelt
from streams_queue.queue import Queue
from streams_queue.shown import BODIES
from streams_queue.story import Story, read_line, story_of

PEEK_EPILOG = f"""\
\b
Examples:
  streams-queue peek --prefix orders
  streams-queue peek --prefix orders --limit 100 --json | jq -r '.[].id'

\b
The line as `position` counts it, messages being worked on included. Of two
waiting messages the one of higher priority is taken first, wherever it is.
A sharded queue's lines are shown as one, by the time of the enqueue; a
position is the place in the message's shard.

{EXIT_CODES}"""

POSITION_EPILOG = f"""\
\b
Examples:
  streams-queue position order-1 --prefix orders
  streams-queue position order-1 --prefix orders --json | jq .ahead

{EXIT_CODES}"""

SHOW_EPILOG = f"""\
\b
Examples:
  streams-queue show order-1 --prefix orders
  streams-queue show order-1 --prefix orders --json | jq .error

\b
Secrets (*token*, *password*, *secret*, *api_key*) are shown as ***.

{EXIT_CODES}"""

Id = Annotated[str, typer.Argument(metavar="ID", help="The message's id.", show_default=False)]

_PEEK = (
    Column("position", lambda row: str(row["position"] or "-"), right=True),
    Column("id", lambda row: row["id"]),
    Column("status", lambda row: "parked" if row["waits_for"] else row["status"] or "no body"),
    Column("priority", lambda row: row["priority"] or "-"),
    Column("age", lambda row: "-" if row["age"] is None else spelt(row["age"]), right=True),
    Column("attempts", lambda row: "-" if row["attempts"] is None else str(row["attempts"]), right=True),
    Column("error", lambda row: row["error"] or "", cut=True),
)


def peek(
    prefix: Prefix = None,
    url: Url = None,
    as_json: Json = False,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many, from the head of the line.")] = 20,
) -> None:
    """Look at the head of the line."""
    on_queue(prefix, url, lambda queue: _peek(queue, limit, as_json))


async def _peek(queue: Queue[dict[str, Any]], limit: int, as_json: bool) -> None:
    with Listing(_PEEK, as_json=as_json) as listing:
        async for page in queue.transitions.walk("main", count=min(limit, BODIES)):
            records = await read_line(queue, page)
            listing.add(records[: limit - listing.length])
            if listing.length >= limit:
                break
    if not listing.length:
        remark("nobody is in line")


def position(id: Id, prefix: Prefix = None, url: Url = None, as_json: Json = False) -> None:
    """Say where in line a message stands."""
    ((place, ahead),) = on_queue(prefix, url, lambda queue: queue.transitions.positions([id]))
    if place is None:
        fail(f"message {id} is in no queue", FAILED)
    if as_json:
        print_json({"id": id, "position": place, "ahead": ahead})
    else:
        say(f"position {place}, {ahead} ahead")


def show(id: Id, prefix: Prefix = None, url: Url = None, as_json: Json = False) -> None:
    """Tell a message's whole story."""
    story = on_queue(prefix, url, lambda queue: story_of(queue, id))
    if story is None:
        fail(f"nothing is known of message {id}: never enqueued, or finished long ago", FAILED)
    print_story(story, as_json=as_json)


def print_story(story: Story, *, as_json: bool) -> None:
    """The story as `show` and `dlq show` tell it."""
    if as_json:
        print_json(story)
    else:
        print_facts(facts_of(story))
