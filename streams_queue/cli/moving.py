"""`streams-queue migrate` and `streams-queue verify`: a queue of the older kind moved in, and proved whole."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from streams_queue.cli.options import PREFIX, DryRun, Json, Prefix, Url, Yes, on_queue, run_on_queue
from streams_queue.cli.output import Column, Listing, confirm, print_json, remark, say
from streams_queue.cli.terminal import FAILED, code_of, complain, fail, fail_by
from streams_queue.connection import Connection
from streams_queue.errors import MigrationError, StreamsQueueError
from streams_queue.queue import Queue
from streams_queue.settings import Settings
from streams_queue.sharding import ShardedQueue
from streams_queue_migrations import (
    Applied,
    Plan,
    RolledBack,
    Verified,
    apply,
    discover,
    plan,
    roll_back,
)
from streams_queue_migrations import (
    verify as look,
)
from streams_queue_migrations.report import Report

MIGRATE_EPILOG = """\
\b
Examples:
  streams-queue migrate --prefix chat_api --dry-run
  streams-queue migrate --prefix chat_api --prefix script_exec
  streams-queue migrate --all
  streams-queue migrate --prefix chat_api --rollback

\b
Stop the workers of the old code first; producers may go on. It may be killed
at any moment and run again. Where one queue fails the others are done all the
same; the highest of their exit codes counts. The guide: docs/migrating.md.

\b
Exit codes:
  0  done, and verified; with --dry-run: nothing speaks against it
  1  refused, or the verification found something
  2  wrong arguments or configuration
  3  the server could not be reached, or not any more: run it again
"""

VERIFY_EPILOG = """\
\b
Examples:
  streams-queue verify --prefix chat_api
  streams-queue verify --prefix chat_api --json | jq .well

\b
Reads only, at any time. What is found on a queue at work is looked at again
after three seconds, and counts only if it is still there.

\b
Exit codes:
  0  all holds that must
  1  something does not, or there is no such queue
  2  wrong arguments or configuration
  3  the server could not be reached
"""

Prefixes = Annotated[
    list[str] | None,
    typer.Option("--prefix", metavar="P", envvar=PREFIX, help="A queue: what its keys begin with. May be repeated."),
]


def migrate(
    prefix: Prefixes = None,
    url: Url = None,
    every: Annotated[bool, typer.Option("--all", help="Every queue of the database.")] = False,
    dry_run: DryRun = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to what the old code works on.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Go on where going on could do harm.")] = False,
    yes: Yes = False,
    report: Annotated[
        Path,
        typer.Option("--report-dir", metavar="DIR", file_okay=False, exists=True, help="Where reports are written."),
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Move queues of the older, sorted-set kind in; or back out again."""
    if dry_run and rollback:
        fail("--dry-run and --rollback do not go together: going back is safe to try, and to undo by migrating again")
    if prefix and every:
        fail(f"--all and --prefix do not go together, nor --all and {PREFIX}: take one")
    if not prefix and not every:
        fail(f"which queues? Name them by --prefix or {PREFIX}, or take --all")
    prefixes = _found(url) if every else list(dict.fromkeys(prefix or ()))
    if rollback and prefixes:
        confirm(f"roll back {', '.join(prefixes)}", yes=yes)
    results = []
    for name in prefixes:
        result = _one(name, url, dry_run, rollback, force, report)
        results.append(result)
        if isinstance(result, Failed):
            complain(result.error)
        elif not as_json:
            _tell(result)
    if as_json:
        print_json([_document(result) for result in results])
    elif not results:
        say("no queue was found")
    if code := max((_code_of(result) for result in results), default=0):
        raise typer.Exit(code)


def verify(prefix: Prefix = None, url: Url = None, as_json: Json = False) -> None:
    """Look at all of a queue: whether everything has a place, a body and an entry."""
    with steps() as show:
        found = on_queue(prefix, url, lambda queue: look(queue, show(queue.keys.prefix)))
    if as_json:
        print_json(_document(found))
    else:
        _tell(found)
    if not found.clean:
        raise typer.Exit(FAILED)


def _found(url: str | None) -> list[str]:
    try:
        return asyncio.run(_discovered(Connection(Settings.resolve(url))))
    except StreamsQueueError as error:
        fail_by(error)


async def _discovered(connection: Connection) -> list[str]:
    await connection.open()
    try:
        return await discover(connection)
    finally:
        await connection.close()


Step = Callable[[str, int, int], None]
Show = Callable[[str], Step]


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a queue where nothing could be done; others go on."""

    prefix: str
    error: str
    code: int


Result = Plan | Applied | RolledBack | Verified | Failed


def _one(prefix: str, url: str | None, dry_run: bool, rollback: bool, force: bool, directory: Path) -> Result:
    async def job(queue: Queue[Any], step: Step) -> tuple[Result, Path | None]:
        if isinstance(queue, ShardedQueue) and queue.shards:
            raise MigrationError(f"queue {prefix!r} has shards: it never was of the older kind, and cannot become so")
        if dry_run:
            return await plan(queue, step), None
        if rollback:
            return await roll_back(queue, step, force=force), None
        report = Report(directory, prefix)
        applied = await apply(queue, step, report.set_aside, force=force)
        report.write(applied)
        return applied, report.path

    try:
        with steps() as show:
            result, report = run_on_queue(prefix, url, lambda queue: job(queue, show(prefix)))
    except StreamsQueueError as error:
        return Failed(prefix=prefix, error=str(error), code=code_of(error))
    if report is not None:
        remark(f"report: {report}")  # now: while there are bars, they would wipe it off the terminal
    return result


def _document(result: Result) -> dict[str, Any]:
    """The result as JSON, its verdict included."""
    return {**msgspec.to_builtins(result), "well": not _code_of(result)}


def _code_of(result: Result) -> int:
    match result:
        case Failed():
            return result.code
        case Plan():
            is_well = not result.refusals
        case Applied():
            is_well = result.verified.clean
        case Verified():
            is_well = result.clean
        case RolledBack():
            is_well = True
    return 0 if is_well else FAILED


# ---- for people


def _tell(result: Plan | Applied | RolledBack | Verified) -> None:
    match result:
        case Plan():
            _tell_plan(result)
        case Applied():
            _tell_applied(result)
        case RolledBack():
            _tell_rolled_back(result)
        case Verified():
            _tell_verified(result)


_PECULIAR = {
    "bodiless": "no body",
    "damaged": "damaged",
    "ends_soon": "ends in 5 min",
    "two_places": "in two sets",
    "no_time": "no time",
    "undecodable": "not UTF-8",
    "left_in_work": "left in work",
    "locked": "locked",
    "no_entry": "to move",
}


def _tell_plan(found: Plan) -> None:
    say(f"queue {found.prefix}: nothing was written")
    columns = [Column("set", lambda record: str(record["set"])), *map(_numbers, ["ids", *_PECULIAR.values()])]
    with Listing(columns, as_json=False) as listing:
        listing.add(
            [
                {
                    "set": census.queue,
                    "ids": census.ids,
                    **{heading: census.found.get(name, 0) for name, heading in _PECULIAR.items()},
                }
                for census in found.censuses
            ]
        )
    if found.migrated_at is not None:
        say(f"migrated before, at {time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime(found.migrated_at))}")
    if found.bytes_needed:
        say(f"memory that it will take: about {max(1, found.bytes_needed >> 20):,} MiB")
    for finding in found.findings:
        say(f"{'refused' if finding.refuses else 'note'}: {finding.what}; {finding.remedy}")


def _numbers(heading: str) -> Column:
    return Column(heading, lambda record: f"{record[heading]:,}", right=True)


def _tell_applied(done: Applied) -> None:
    if done.changed:
        say(f"queue {done.prefix}: {done.entered:,} messages moved in, {done.seconds:.1f} s, verification included")
    else:
        say(f"queue {done.prefix}: nothing to change")
    told = {
        "put in order": done.ordered,
        "scores that were ahead of the clock, set to now": done.retimed,
        "retries and dead letters whose bodies are kept": done.kept,
        "second places left": done.left,
        "entries dropped that no message went by": done.dropped,
        **{f"without a body in {queue}, set aside on P:lost": ids for queue, ids in done.set_aside.items()},
    }
    for what, count in told.items():
        if count:
            say(f"  {count:,} {what}")
    _tell_verified(done.verified)


def _tell_rolled_back(done: RolledBack) -> None:
    say(f"queue {done.prefix}: {done.messages:,} messages are as the old code knows them")
    if done.typed:
        say(f"  {done.typed:,} have values that had a type, which is lost: the old code guesses it from the text")
    if done.scheduled:
        say(f"  {done.scheduled:,} scheduled ones wait as retries: the old code looks at those only when main is empty")
    if done.prioritised:
        say(f"  {done.prioritised:,} have a priority, which the old code does not honour")
    if done.escaped:
        say(f"  {done.escaped:,} have payload keys that the old code sees as data:<key>")


def _tell_verified(found: Verified) -> None:
    total = ", ".join(f"{ids:,} in {queue}" for queue, ids in found.ids.items())
    say(f"queue {found.prefix}: {'clean' if found.clean else 'NOT clean'}; {total}")
    for check in found.checks:
        if check.holds:
            continue
        examples = f", as {', '.join(check.examples[:3])}" if check.examples else ""
        say(f"  {'fault' if check.fatal else 'note'}: {check.what}; {check.violations:,} do not{examples}")
        say(f"    {check.remedy}")


# ---- progress


@contextmanager
def steps() -> Iterator[Show]:
    """Bars on stderr, one for each step of each queue, with the rate and the time left."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(prefix: str) -> Step:
            def step(name: str, done: int, total: int) -> None:
                words = f"{prefix} {name}"
                if words not in tasks:
                    tasks[words] = bars.add_task(words, total=total, rate="")
                speed = bars.tasks[tasks[words]].speed
                bars.update(tasks[words], completed=done, total=total, rate=f"{speed:,.0f}/s" if speed else "")

            return step

        yield show
