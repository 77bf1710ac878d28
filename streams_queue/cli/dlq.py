"""`streams-queue dlq`: look at the dead letters, put them back in line, throw them away."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import typer

from streams_queue.cli.durations import duration
from streams_queue.cli.look import Id, print_story
from streams_queue.cli.options import EXIT_CODES, DryRun, Json, Prefix, Url, Yes, on_queue, queue_name
from streams_queue.cli.output import (
    Column,
    Listing,
    check_can_ask,
    confirm,
    outcomes_of,
    print_json,
    progress,
    remark,
    say,
)
from streams_queue.cli.terminal import FAILED, MISUSED, fail
from streams_queue.durations import spelt
from streams_queue.letters import (
    DELETE,
    REQUEUE,
    AnyQueue,
    Change,
    Chosen,
    Reason,
    Wanted,
    carry_out,
    named,
    newest,
    oldest,
    rehearsed,
    server_time,
)
from streams_queue.story import story_of

EPILOG = """\
\b
Examples:
  streams-queue dlq list --prefix orders --newer-than 2h
  streams-queue dlq show order-1 --prefix orders
  streams-queue dlq requeue --all --reason timeout --rate 50/s --prefix orders
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, epilog=EPILOG)

_CHOOSING = """\
\b
Durations: 90s, 15m, 2h, 3d. --text looks for the words in the error and in
the payload, whatever their case; secrets are not searched.
"""

LIST_EPILOG = f"""\
\b
Examples:
  streams-queue dlq list --prefix orders
  streams-queue dlq list --prefix orders --reason timeout --newer-than 2h
  streams-queue dlq list --prefix orders --text 'no stock' --json | jq .[].id

{_CHOOSING}
{EXIT_CODES}"""

SHOW_EPILOG = f"""\
\b
Example:
  streams-queue dlq show order-1 --prefix orders

{EXIT_CODES}"""

REQUEUE_EPILOG = f"""\
\b
Examples:
  streams-queue dlq requeue order-1 order-2 --prefix orders
  streams-queue dlq requeue --all --reason timeout --dry-run --prefix orders
  streams-queue dlq requeue --all --newer-than 1d --rate 50/s --prefix orders

{_CHOOSING}
\b
Those that died first come first. What dies while this runs is left.

{EXIT_CODES}"""

DELETE_EPILOG = f"""\
\b
Examples:
  streams-queue dlq delete order-1 --prefix orders
  streams-queue dlq delete --all --older-than 14d --prefix orders
  streams-queue dlq delete --all --reason rejected --yes --prefix orders

{_CHOOSING}
{EXIT_CODES}"""

_RATE = re.compile(r"(\d+(?:\.\d+)?)(?:/([smh]))?")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def rate_of(text: str) -> float:
    """Messages a second, from ``50/s``, ``600/m`` or ``50``.

    Raises:
        typer.BadParameter: it is none of these, or zero.
    """
    match = _RATE.fullmatch(text.strip())
    rate = float(match[1]) / _SECONDS[match[2] or "s"] if match else 0.0
    if not rate:
        raise typer.BadParameter(f"{text!r} is no rate: write for example 50/s")
    return rate


Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="The messages' ids.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All dead letters, or those that the filters leave.")]
OfReason = Annotated[Reason | None, typer.Option("--reason", help="Given up for this reason.")]
OlderThan = Annotated[
    float | None, typer.Option("--older-than", parser=duration, metavar="TIME", help="Dead for longer, as in 3d.")
]
NewerThan = Annotated[
    float | None, typer.Option("--newer-than", parser=duration, metavar="TIME", help="Dead for less, as in 15m.")
]
WithText = Annotated[
    str | None, typer.Option("--text", metavar="WORDS", help="With these words in the error or the payload.")
]
Rate = Annotated[float | None, typer.Option("--rate", parser=rate_of, metavar="N/s", help="So many a second at most.")]

_LIST = (
    Column("id", lambda row: row["id"]),
    Column("died", lambda row: f"{spelt(row['age'])} ago", right=True),
    Column("reason", lambda row: row["reason"] or "-"),
    Column("attempts", lambda row: "-" if row["attempts"] is None else str(row["attempts"]), right=True),
    Column("error", lambda row: row["error"] or ("its body ran out" if row["data"] is None else ""), cut=True),
)


@app.command("list", epilog=LIST_EPILOG)
def list_(
    prefix: Prefix = None,
    url: Url = None,
    as_json: Json = False,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many at most.")] = 50,
    reason: OfReason = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    text: WithText = None,
) -> None:
    """List dead letters, the newest first."""
    wanted = Wanted(reason, older_than, newer_than, text)
    on_queue(prefix, url, lambda queue: _list(queue, wanted, limit, as_json))


async def _list(queue: AnyQueue, wanted: Wanted, limit: int, as_json: bool) -> None:
    with Listing(_LIST, as_json=as_json) as listing:
        async for letters in newest(queue, wanted):
            listing.add(letters[: limit - listing.length])
            if listing.length >= limit:
                break
    if not listing.length:
        remark("no dead letters" if wanted == Wanted() else "no such dead letters")


@app.command(epilog=SHOW_EPILOG)
def show(id: Id, prefix: Prefix = None, url: Url = None, as_json: Json = False) -> None:
    """Tell a dead letter's whole story."""
    story = on_queue(prefix, url, lambda queue: story_of(queue, id))
    if story is None or "dlq" not in story["places"]:
        fail(f"message {id} is not among the dead letters", FAILED)
    print_story(story, as_json=as_json)


@app.command(epilog=REQUEUE_EPILOG)
def requeue(
    ids: Ids = None,
    every: All = False,
    prefix: Prefix = None,
    url: Url = None,
    as_json: Json = False,
    reason: OfReason = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    text: WithText = None,
    rate: Rate = None,
    dry_run: DryRun = False,
) -> None:
    """Put dead letters back in line, their counts started anew."""
    wanted = Wanted(reason, older_than, newer_than, text)
    _check_choice(ids, every, wanted)
    change = rehearsed(REQUEUE) if dry_run else REQUEUE
    rate = None if dry_run else rate
    if ids:
        _change_named(prefix, url, change, ids, rate, as_json)
        return
    counts = on_queue(prefix, url, lambda queue: _change_all(queue, change, wanted, rate=rate))
    _print_counts(change, counts, dry_run, as_json)


@app.command(epilog=DELETE_EPILOG)
def delete(
    ids: Ids = None,
    every: All = False,
    prefix: Prefix = None,
    url: Url = None,
    as_json: Json = False,
    reason: OfReason = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    text: WithText = None,
    rate: Rate = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Throw dead letters away."""
    wanted = Wanted(reason, older_than, newer_than, text)
    _check_choice(ids, every, wanted)
    yes = yes or dry_run
    change = rehearsed(DELETE) if dry_run else DELETE
    if ids:
        confirm(f"delete {_letters(len(set(ids)))} of {queue_name(prefix)} for good", yes=yes)
        _change_named(prefix, url, change, ids, None if dry_run else rate, as_json)
        return
    check_can_ask(f"delete dead letters of {queue_name(prefix)} for good", yes=yes)
    began = on_queue(prefix, url, server_time)
    if not yes:
        found = on_queue(prefix, url, lambda queue: _change_all(queue, rehearsed(DELETE), wanted, began))
        if found[DELETE.done]:
            confirm(f"delete {_letters(found[DELETE.done])} of {queue_name(prefix)} for good", yes=False)
    counts = on_queue(
        prefix, url, lambda queue: _change_all(queue, change, wanted, began, rate=None if dry_run else rate)
    )
    _print_counts(change, counts, dry_run, as_json)


def _letters(count: int) -> str:
    return f"{count} dead letter{'s' * (count != 1)}"


def _check_choice(ids: list[str] | None, every: bool, wanted: Wanted) -> None:
    if bool(ids) == every:
        fail("say which: ids, or --all, and not both", MISUSED)
    if ids and wanted != Wanted():
        fail("--reason, --older-than, --newer-than and --text go with --all, not with ids", MISUSED)


def _change_named(
    prefix: str | None, url: str | None, change: Change, ids: list[str], rate: float | None, as_json: bool
) -> None:
    ids = list(dict.fromkeys(ids))

    async def run(queue: AnyQueue) -> Counter[str]:
        with outcomes_of(as_json=as_json) as tell:
            return await _carry_out(queue, change, named(ids), rate=rate, total=len(ids), tell=tell)

    if on_queue(prefix, url, run)[change.done] < len(ids):
        raise typer.Exit(FAILED)


async def _change_all(
    queue: AnyQueue, change: Change, wanted: Wanted, began: float | None = None, *, rate: float | None = None
) -> Counter[str]:
    if began is None:
        began = await server_time(queue)
    total = (await queue.stats()).dead if wanted.older_than is wanted.newer_than is None else None
    return await _carry_out(queue, change, oldest(queue, wanted, began), rate=rate, total=total)


async def _carry_out(
    queue: AnyQueue,
    change: Change,
    chosen: AsyncIterator[Chosen],
    *,
    rate: float | None,
    total: int | None,
    tell: Callable[[list[str], list[str]], None] | None = None,
) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    try:
        with progress(change.verb, total, printing=tell is not None) as advance:
            await carry_out(queue, change, chosen, outcomes, rate=rate, advance=advance, tell=tell)
    except BaseException:  # Ctrl-C comes as a cancellation
        remark(f"at least {outcomes[change.done]} were {change.done} before this")
        raise
    return outcomes


def _print_counts(change: Change, counts: Counter[str], dry_run: bool, as_json: bool) -> None:
    if as_json:
        names = [change.done, "missing", *(["expired"] if change.verb == "requeue" else [])]
        shown: dict[str, Any] = {"dry_run": dry_run, **{name: counts[name] for name in names}}
        print_json(shown)
        return
    done = _letters(counts[change.done])
    say(f"would {change.verb} {done}; nothing was changed" if dry_run else f"{change.done} {done}")
    if counts["expired"]:
        say(f"{counts['expired']} more had no body any more")
    if counts["missing"]:
        say(f"{counts['missing']} more had gone meanwhile")
