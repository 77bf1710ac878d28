"""A queue as one picture that two runs of the same thing share, whenever they ran; and copies to run them on."""

from __future__ import annotations

import json
import re
from typing import Any

import redis as redis_py

Picture = dict[bytes, Any]

_ENTRY = re.compile(rb"\d{13,}-\d+")
_PASSING = {b"migrated_at", b"migration_began", b"migration_report"}
_NEAR = 0.5


class Copy:
    """Every key of a database as it was, to be put back as often as it is needed."""

    def __init__(self, client: redis_py.Redis) -> None:
        self._client = client
        keys = sorted(client.scan_iter(count=1000))
        pipeline = client.pipeline(transaction=True)
        pipeline.time()
        for key in keys:
            pipeline.dump(key)
            pipeline.pttl(key)
        (whole, micro), *rest = pipeline.execute()
        now = whole * 1000 + micro // 1000
        self._dumps = dict(zip(keys, rest[::2], strict=True))
        self.ends = {key: now + ttl for key, ttl in zip(keys, rest[1::2], strict=True) if ttl >= 0}
        """Milliseconds since the epoch at which a key runs out."""

    def put_back(self) -> None:
        """The database is as it was."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.flushall()
        for key, dump in self._dumps.items():
            pipeline.restore(key, self.ends.get(key, 0), dump, absttl=key in self.ends)
        pipeline.execute()


def picture(client: redis_py.Redis, copy: Copy | None = None) -> Picture:
    """Every key: entries by id and order, times of the run itself left out; what expires, and when.

    Args:
        client: answers in bytes.
        copy: keys whose end is as it was in it are shown so, others have theirs to the nearest five minutes.
    """
    whole, micro = client.time()
    now = float(whole) + micro / 1e6
    ends = copy.ends if copy else {}
    shown: Picture = {}
    for key in sorted(client.scan_iter(count=1000)):
        left = client.pttl(key) / 1000
        shown[key] = (_value(client, key, now), _end(left, now, ends.get(key)))
    return shown


def exact(client: redis_py.Redis) -> Picture:
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


def _value(client: redis_py.Redis, key: bytes, now: float) -> Any:
    match client.type(key):
        case b"zset" if key.endswith((b":lost", b":bodiless")):
            return sorted(client.zrange(key, 0, -1))
        case b"zset":
            pairs = client.zrange(key, 0, -1, withscores=True)
            return [(id, "now" if abs(score - now) < 60 else score) for id, score in pairs]
        case b"stream":
            entries = [fields[b"id"] for _, fields in client.xrange(key)]
            return entries, [(group["name"], group["pending"]) for group in client.xinfo_groups(key)]
        case b"hash":
            fields = {name: _ENTRY.sub(b"*", text) for name, text in client.hgetall(key).items()}
            return {name: _meta(name, text) for name, text in fields.items()}
        case b"list":
            return client.lrange(key, 0, -1)
        case b"string":
            return client.get(key)
        case kind:
            raise AssertionError(f"{key!r} is a {kind!r}")


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
    return round(left / 300) * 300
