"""A queue as one picture that two runs of the same thing share, whenever they ran; and copies to run them on."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

Picture = dict[bytes, Any]

_ENTRY = re.compile(rb"\d{13,}-\d+")
_PASSING = {b"migrated_at", b"migration_began", b"migration_report"}
_NEAR = 0.05
"""Seconds: two ends that close are one."""
_ABOUT = 30.0
"""Seconds that a run may take between what sets a key's end and the picture."""


@dataclasses.dataclass
class End:  # noqa: PLW1641  (about the same is no ground for a hash)
    """When a key ends. Of two runs, minutes apart, some keys have about as long to live, some end at about one time."""

    left: float
    at: float

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, End):
            return NotImplemented
        return abs(self.left - other.left) < _ABOUT or abs(self.at - other.at) < _ABOUT


class Copy:
    """Every key of a database as it was, to be put back as often as it is needed; no key grows older meanwhile."""

    def __init__(self, client: Any) -> None:
        self._client = client
        keys = sorted(client.scan_iter(count=1000))
        pipeline = client.pipeline(transaction=True)
        pipeline.time()
        for key in keys:
            pipeline.dump(key)
            pipeline.pttl(key)
        (whole, micro), *rest = pipeline.execute()
        self._dumps = dict(zip(keys, rest[::2], strict=True))
        self._lefts = {key: ttl for key, ttl in zip(keys, rest[1::2], strict=True) if ttl >= 0}
        self.ends: dict[bytes, int] = {}
        """Milliseconds since the epoch at which a key runs out."""
        self._begin(whole, micro)

    def _begin(self, whole: int, micro: int) -> None:
        self.ends = {key: whole * 1000 + micro // 1000 + left for key, left in self._lefts.items()}

    def put_back(self) -> None:
        """The database is as it was."""
        self._begin(*self._client.time())
        pipeline = self._client.pipeline(transaction=False)
        pipeline.flushall()
        for key, dump in self._dumps.items():
            pipeline.restore(key, self.ends.get(key, 0), dump, absttl=key in self.ends)
        pipeline.execute()


def picture(client: Any, copy: Copy | None = None) -> Picture:
    """Every key: entries by id and order, times of the run itself left out; what expires, and when.

    Args:
        client: answers in bytes.
        copy: keys whose end is as it was in it are shown so, others have about what is left to them.
    """
    keys = sorted(client.scan_iter(count=1000))
    pipeline = client.pipeline(transaction=True)
    pipeline.time()
    for key in keys:
        pipeline.pttl(key)
        pipeline.type(key)
    (whole, micro), *rest = pipeline.execute()
    now, lefts, kinds = whole + micro / 1e6, rest[::2], rest[1::2]
    pipeline = client.pipeline(transaction=True)
    for key, kind in zip(keys, kinds, strict=True):
        _ask(pipeline, key, kind)
    replies = pipeline.execute()
    ends = copy.ends if copy else {}
    return {
        key: (_shown(key, kind, reply, now), _end(left / 1000, now, ends.get(key)))
        for key, kind, left, reply in zip(keys, kinds, lefts, replies, strict=True)
    }


def exact(client: Any) -> Picture:
    """Every key to the last byte and entry, without the times in the meta hash."""
    shown: Picture = {}
    for key in sorted(client.scan_iter(count=1000)):
        kind = client.type(key)
        if kind == b"hash":
            value: Any = {name: text for name, text in client.hgetall(key).items() if name not in _PASSING}
        elif kind == b"stream":
            value = (client.xrange(key), client.xinfo_groups(key))
        else:
            value = client.dump(key)
        shown[key] = (value, client.pttl(key) >= 0)
    return shown


def differences(one: Picture, two: Picture) -> str:
    """What differs, for a person to read; empty where nothing does."""
    keys = sorted(key for key in {*one, *two} if one.get(key) != two.get(key))
    return "\n".join(f"{key!r}:\n  {one.get(key)!r:.600}\n  {two.get(key)!r:.600}" for key in keys[:5])


def _ask(pipeline: Any, key: bytes, kind: bytes) -> None:
    match kind:
        case b"zset":
            pipeline.zrange(key, 0, -1, withscores=True)
        case b"stream":
            pipeline.xrange(key)
        case b"hash":
            pipeline.hgetall(key)
        case b"list":
            pipeline.lrange(key, 0, -1)
        case b"string":
            pipeline.get(key)
        case _:
            raise AssertionError(f"{key!r} is a {kind!r}")


def _shown(key: bytes, kind: bytes, reply: Any, now: float) -> Any:
    if kind == b"zset" and key.endswith((b":lost", b":bodiless")):
        return sorted(id for id, _ in reply)
    if kind == b"zset":
        return [(id, "now" if abs(score - now) < 60 else score) for id, score in reply]
    if kind == b"stream":
        return [fields[b"id"] for _, fields in reply]
    if kind == b"hash":
        return {name: _meta(name, _ENTRY.sub(b"*", text)) for name, text in reply.items()}
    return reply


def _meta(name: bytes, text: bytes) -> Any:
    if name == b"migration_report":
        report = json.loads(text)
        return {field: value for field, value in report.items() if field.endswith("_after")}
    return "some time" if name in _PASSING else text


def _end(left: float, now: float, was: int | None) -> Any:
    if left < 0:
        return "never"
    if was is not None and abs(now + left - was / 1000) < _NEAR:
        return "as it was"
    return End(left, now + left)
