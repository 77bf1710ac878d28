"""What could go wrong, asked before anything is written."""

import asyncio

from streams_queue.inspection import Severity, inspect
from streams_queue_migrations.door import Door
from streams_queue_migrations.model import Finding

OURS = "streams-queue"
"""The owner's name that this code's chat workers give the global lock."""

CHAT = "chat_api"
"""The prefix of the chat queue, whose messages are found by their user too."""

_BYTES_PER_MESSAGE = 150
"""What a stream entry and the fields of the engine take, measured with ids of 36 characters on Valkey 9.1."""

_BYTES_PER_USER = 150
"""What a user's index takes, measured likewise."""

_HEAD = 200
"""Ids at the head of main that are watched: an old worker takes the first."""


def bytes_needed(prefix: str, messages: int) -> int:
    """Memory that moving in so many messages of main will take at most, estimated."""
    return messages * (_BYTES_PER_MESSAGE + (_BYTES_PER_USER if prefix == CHAT else 0))


async def preflight(door: Door, *, watch: float) -> list[Finding]:
    """What whoever migrates should know, the reasons to refuse among it.

    Args:
        door: of the queue.
        watch: seconds that the head of the line is watched for signs of old workers.
    """
    if wrong := await _wrong_kinds(door):
        return wrong  # nothing else can be read then
    sizes = await door.sizes()
    return [
        *await _strangers(door),
        *await _server(door),
        *await _memory(door, max(0, sizes["main"] - sizes["entries"])),
        *await _old_workers(door, watch),
        *await _new_workers(door),
    ]


async def _wrong_kinds(door: Door) -> list[Finding]:
    return [
        Finding(
            "wrong_type",
            refuses=True,
            what=f"{key} is a {kind}, not a {wanted}: another program's, or a mistake",
            remedy=f"look at it, and move it away: RENAME {key} {key}.old",
        )
        for key, kind, wanted in await door.wrong_kinds()
    ]


async def _strangers(door: Door) -> list[Finding]:
    """Sets of these names alone make no queue of ours: all of their ids would be set aside."""
    keys = door.keys
    ids = [id for set in (keys.main, keys.retry, keys.dlq) for id in await door.head(set, _HEAD)]
    if not ids or (await door.stats()).counters or await door.command("EXISTS", *map(keys.message, ids)):
        return []
    return [
        Finding(
            "stranger",
            refuses=True,
            what=f"no id has a body, {ids[0]} for one, and {keys.stats} counts nothing: another program's",
            remedy="look at it; if it is a queue, going on sets all ids without a body aside",
        )
    ]


async def _server(door: Door) -> list[Finding]:
    """What a worker would call a danger: with more to write it is a greater one."""
    return [
        Finding(found.name, refuses=True, what=f"{found.what} {found.why}", remedy=found.remedy)
        for found in await inspect(door.connection, door.keys.prefix)
        if found.severity is Severity.DANGER
    ]


async def _memory(door: Door, messages: int) -> list[Finding]:
    memory = await door.connection.ask("INFO", "memory", near=door.keys.main) or {}
    limit, used = int(memory.get("maxmemory", 0)), int(memory.get("used_memory", 0))
    needed, free = bytes_needed(door.keys.prefix, messages), max(0, limit - used)
    if not limit or needed <= free:
        return []
    return [
        Finding(
            "memory",
            refuses=True,
            what=f"about {needed >> 20} MiB more are needed, {free >> 20} MiB are free",
            remedy="raise maxmemory, or work the queue off first",
        )
    ]


async def _old_workers(door: Door, watch: float) -> list[Finding]:
    remedy = "stop them all, and start again"
    owner = await door.global_lock()
    if owner is not None and owner != OURS:
        return [
            Finding(
                "global_lock",
                refuses=True,
                what=f"{door.keys.global_lock} is held by {owner!r}: a worker of the old code runs, or died lately",
                remedy=f"{remedy}; the lock of one that died runs out by itself, or DEL {door.keys.global_lock}",
            )
        ]
    before = await _old_work(door, await door.head(door.keys.main, _HEAD))
    await asyncio.sleep(watch)
    after = await _old_work(door, list(before))
    moved = [id for id, stage in after.items() if stage and stage != before[id]]
    if not moved:
        return []
    return [
        Finding(
            "old_worker",
            refuses=True,
            what=f"within {watch:g} s {len(moved)} messages were taken by a worker of the old code, {moved[0]} for one",
            remedy=remedy,
        )
    ]


async def _old_work(door: Door, ids: list[str]) -> dict[str, str]:
    """For each id: ``begun`` where a worker that is none of ours works on it, or did; ``left`` where it took it out of
    main; else empty.
    """
    hashes = await door.read(ids)
    stages = {}
    for id, fields in zip(ids, hashes, strict=True):
        if await door.in_line(id):  # a body that is not there then has run out
            stages[id] = "begun" if fields.get("status") == b"processing" and "_sq_owner" not in fields else ""
        else:
            ours = "_sq_entry" in fields or await door.command("EXISTS", door.keys.done(id))
            stages[id] = "" if ours else "left"
    return stages


async def _new_workers(door: Door) -> list[Finding]:
    lease = float((await door.meta()).get("lease_ms", 0)) / 1000
    living = {consumer.name for consumer in await door.consumers() if consumer.idle < lease}
    if not living:
        return []
    return [
        Finding(
            "new_workers",
            refuses=False,
            what=f"{len(living)} workers of this engine run: what they take meanwhile does not wait for its turn",
            remedy="nothing is lost by it; stop them for the order to hold",
        )
    ]
