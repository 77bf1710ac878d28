"""Plan: what a migration would meet. Reads only."""

from typing import Any

from streams_queue.queue import Queue
from streams_queue_migrations.census import take_census
from streams_queue_migrations.door import Door
from streams_queue_migrations.model import Plan, Progress
from streams_queue_migrations.preflight import bytes_needed, preflight

WATCH = 2.0
"""Seconds that the head of the line is watched for signs of old workers."""


async def plan(queue: Queue[Any], progress: Progress, *, watch: float = WATCH) -> Plan:
    """Look at everything and write nothing. O(n).

    Raises:
        QueueUnavailable: the server does not answer.
        ConfigurationError: a newer engine wrote the queue, or access is denied.
    """
    door = Door(queue.connection, queue.keys)
    findings = await preflight(door, watch=watch)
    unreadable = any(finding.name == "wrong_type" for finding in findings)
    censuses = [] if unreadable else await take_census(door, progress, texts=True)
    meta = {} if unreadable else await door.meta()
    without_entry = censuses[0].found.get("no_entry", 0) if censuses else 0
    return Plan(
        prefix=queue.keys.prefix,
        censuses=censuses,
        findings=findings,
        migrated_at=float(meta["migrated_at"]) if "migrated_at" in meta else None,
        bytes_needed=bytes_needed(queue.keys.prefix, without_entry),
    )
