"""`streams-queue reshard`: another number of shards for a queue at work, and the proof that nothing was lost."""

from typing import Annotated

import msgspec
import typer

from streams_queue.cli.moving import steps
from streams_queue.cli.options import DryRun, Json, Prefix, Url, on_queue
from streams_queue.cli.output import print_json, say
from streams_queue.cli.terminal import FAILED
from streams_queue.errors import MigrationError
from streams_queue.queue import Queue
from streams_queue.sharding import ShardedQueue
from streams_queue_migrations import Progress, Resharded, ReshardPlan, plan_reshard, reshard

EPILOG = """\
\b
Examples:
  streams-queue reshard --prefix chat_api --shards 32 --dry-run
  streams-queue reshard --prefix chat_api --shards 32

\b
Producers and workers go on meanwhile. What workers hold is left to finish,
and waited for. It may be killed at any moment, and must then be run again
with the same number. The guide: docs/scaling.md.

\b
Exit codes:
  0  done, and verified
  1  refused, or the verification found something
  2  wrong arguments or configuration
  3  a server could not be reached, or not any more: run it again
"""


def reshard_command(
    shards: Annotated[int, typer.Option("--shards", min=1, metavar="N", help="How many there are to be.")],
    prefix: Prefix = None,
    url: Url = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Change the number of shards of a queue, while it is at work."""
    with steps() as show:

        async def job(queue: Queue[dict[str, object]]) -> ReshardPlan | Resharded:
            progress: Progress = show(queue.keys.prefix)
            if not isinstance(queue, ShardedQueue):
                raise MigrationError(f"queue {queue.keys.prefix!r} has no shards")
            return await (plan_reshard if dry_run else reshard)(queue, shards, progress)

        found = on_queue(prefix, url, job)
    is_well = isinstance(found, ReshardPlan) or found.clean
    if as_json:
        print_json({**msgspec.to_builtins(found), "well": is_well})
    else:
        _tell(found)
    if not is_well:
        raise typer.Exit(FAILED)


def _tell(found: ReshardPlan | Resharded) -> None:
    if isinstance(found, ReshardPlan):
        moving, messages = (sum(getattr(shard, name) for shard in found.shards) for name in ("elsewhere", "messages"))
        say(f"queue {found.prefix}: nothing was written")
        say(f"  from {found.before} shards to {found.after}, {moving:,} of {messages:,} messages would move")
        if found.under_way:
            say("  it was begun before, and is to be finished")
        return
    moved = sum(found.moved.values())
    say(f"queue {found.prefix}: {'clean' if found.clean else 'NOT clean'}; {found.after} shards, {found.before} before")
    say(f"  {moved:,} messages moved in {found.seconds:.1f} s")
    told = {
        **{f"moved in {queue}": count for queue, count in found.moved.items()},
        "that an earlier run had left on their way": found.finished,
        "without a body, on P:lost now": found.expired,
        "dropped, having met one with the same id": len(found.known),
    }
    for what, count in told.items():
        if count:
            say(f"  {count:,} {what}")
    for check in found.checks:
        if not check.holds:
            examples = f", as {', '.join(check.examples[:3])}" if check.examples else ""
            say(f"  {'fault' if check.fatal else 'note'}: {check.what}; {check.violations:,} do not{examples}")
            say(f"    {check.remedy}")
