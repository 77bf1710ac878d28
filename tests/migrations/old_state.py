"""Queues as the older code left them, whole or damaged, written from its contract alone: nothing of ours is imported.

Everything is pipelined and kept in a model beside it, which says what a migration has to make of it.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from compat.old_programs import encoded

TTL = 3600
"""Seconds: the documented ``default_ttl`` and ``dedup_expiry``."""

LOCK_TTL = 300
_BATCH = 2000

NAMES = ("main", "retry", "dlq")


def as_bytes(id: str | bytes) -> bytes:
    return id if isinstance(id, bytes) else id.encode("utf-8", "surrogateescape")


def as_text(id: bytes) -> str:
    return id.decode("utf-8", "surrogateescape")


def chat_fields(user: str, message: str) -> dict[str, Any]:
    """What a chat back end put into a message."""
    return {
        "user_id": user, "message": message, "source_type": "telegram", "source_id": "-100", "chat_id": "5",
        "response_token": "123:secret", "chat_type": "private", "message_id": "77",
    }  # fmt: skip


class OldState:
    """One queue being written: a place and a body at a time, sent in batches; `flush` sends the rest.

    Args:
        client: answers in bytes.
        prefix: of the queue.
    """

    def __init__(self, client: Any, prefix: str) -> None:
        self.prefix = prefix
        self.sets: dict[str, dict[bytes, float]] = {name: {} for name in NAMES}
        self.bodies: set[bytes] = set()
        """Ids whose body is one: a hash with a timestamp."""
        self.counters: dict[str, int] = {}
        self._client = client
        self._pipeline = client.pipeline(transaction=False)
        self._sent = 0

    def key(self, *parts: str | bytes) -> bytes:
        return b":".join(as_bytes(part) for part in (self.prefix, *parts))

    # ---- what the old code wrote

    def queued(self, id: str | bytes, score: float | None = None, **more: Any) -> bytes:
        """Accepted: body, place in main, slot where it has a user and a message; counted."""
        raw = self.body(id, score=score, **more)
        self.place("main", raw, time.time() if score is None else score)
        self.count("total_messages")
        return raw

    def left_in_work(self, id: str | bytes, score: float | None = None, *, locked: bool = False, **more: Any) -> bytes:
        """The worker died over it: it stands in main still, and its lock runs out by itself."""
        raw = self.queued(id, score, status="processing", **more)
        if locked:
            self.lock(raw)
        return raw

    def retrying(self, id: str | bytes, due: float, **more: Any) -> bytes:
        """It failed once, and waits for its next attempt."""
        raw = self.body(
            id, status="retry", retry_count=1, next_retry=due, last_error="oops", last_error_time=time.time(), **more
        )
        self.place("retry", raw, due)
        self.count("total_messages")
        self.count("retry_count")
        return raw

    def dead(self, id: str | bytes, died: float | None = None, **more: Any) -> bytes:
        """Given up: its body has what is left of its hour."""
        died = time.time() if died is None else died
        raw = self.body(id, status="error", retry_count=3, error="gave up", moved_to_dlq_at=died, **more)
        self.place("dlq", raw, died)
        self.count("total_messages")
        self.count("dlq_messages")
        return raw

    # ---- its parts, from which damage is made too

    def body(
        self,
        id: str | bytes,
        *,
        score: float | None = None,
        ttl: int | None = TTL,
        chat: tuple[str, str] | None = None,
        without: Iterable[str] = (),
        raw_fields: Mapping[str | bytes, bytes] | None = None,
        **fields: Any,
    ) -> bytes:
        """The hash, and the slot where it is a chat message; `raw_fields` are stored as they are."""
        raw = as_bytes(id)
        data: dict[str, Any] = {"request_id": raw, "timestamp": time.time() if score is None else score}
        if chat is not None:
            data |= chat_fields(*chat)
        data |= {"status": "queued", "retry_count": 0, **fields}
        if chat is not None:
            slot = self.key("dedup", hashlib.md5(f"{chat[0]}:{chat[1]}".encode()).hexdigest())
            data["dedup_key"] = slot
            self._send("SET", slot, raw, "EX", TTL)
        data["_has_callback"] = False
        kept = {name: value for name, value in data.items() if name not in without}
        flat: list[Any] = []
        for name, value in kept.items():
            flat += (name, value if isinstance(value, bytes) else encoded(value))
        for raw_name, raw_value in (raw_fields or {}).items():
            flat += (raw_name, raw_value)
        self._send("HSET", self.key("msg", raw), *flat)
        if ttl is not None:
            self._send("EXPIRE", self.key("msg", raw), ttl)
        if "timestamp" in kept:
            self.bodies.add(raw)
        return raw

    def place(self, name: str, id: str | bytes, score: float) -> bytes:
        raw = as_bytes(id)
        self.sets[name][raw] = score
        self._send("ZADD", self.key("queue", name), repr(score), raw)
        return raw

    def lock(self, id: str | bytes, owner: str = "old-worker", seconds: int = LOCK_TTL) -> None:
        self._send("SET", self.key("lock", id), owner, "EX", seconds)

    def count(self, name: str, by: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + by

    def counter(self, name: str, value: str) -> None:
        """A counter that somebody overwrote."""
        self._send("HSET", self.key("stats"), name, value)
        self.counters.pop(name, None)

    def list_instead(self, *key: str | bytes) -> None:
        """A key of another type than the contract says."""
        self._send("DEL", self.key(*key))
        self._send("RPUSH", self.key(*key), "another program's")
        self._send("EXPIRE", self.key(*key), TTL)

    def flush(self) -> None:
        """Send what is left."""
        for name, by in self.counters.items():
            self._pipeline.execute_command("HSET", self.key("stats"), name, by)
        self._pipeline.execute()
        self._sent = 0

    def _send(self, *words: Any) -> None:
        self._pipeline.execute_command(*words)
        self._sent += 1
        if self._sent >= _BATCH:
            self._pipeline.execute()
            self._sent = 0

    # ---- what has to become of it

    @property
    def main(self) -> list[bytes]:
        """Ids of main that have a body, in order: those of one score by their bytes."""
        return [id for id in self._ordered("main") if id in self.bodies]

    @property
    def retry(self) -> list[bytes]:
        return [id for id in self._ordered("retry") if id in self.bodies and id not in self.sets["main"]]

    @property
    def dlq(self) -> list[bytes]:
        before = {**self.sets["main"], **self.sets["retry"]}
        return [id for id in self._ordered("dlq") if id in self.bodies and id not in before]

    @property
    def lost(self) -> set[bytes]:
        """Ids without a body, wherever they stand."""
        return {id for name in NAMES for id in self.sets[name]} - self.bodies

    def _ordered(self, name: str) -> list[bytes]:
        return [id for id, _ in sorted(self.sets[name].items(), key=lambda pair: (pair[1], pair[0]))]


@contextmanager
def written(client: Any, prefix: str) -> Iterator[OldState]:
    """A queue to write; all of it is there afterwards."""
    state = OldState(client, prefix)
    yield state
    state.flush()


def every_damage(state: OldState, count: int, seed: int = 0) -> None:
    """A queue of some `count` messages, each kind of state and of damage among them, many times in a large one."""
    chosen, now = random.Random(seed), time.time()
    kinds = [kind for kind in _KINDS for _ in range(max(1, round(count * 0.4 / len(_KINDS))))]
    kinds += [_plain] * max(0, count - len(kinds))
    chosen.shuffle(kinds)
    for n, kind in enumerate(kinds):
        kind(state, f"{n:06d}", now - 50_000 + n)
    for n in range(20):
        state.queued(f"equal-{n:02d}", now - 40_000.5)
    state.lock("nobody", seconds=LOCK_TTL)


def _plain(state: OldState, n: str, at: float) -> None:
    state.queued(f"plain-{n}", at)


def _chat(state: OldState, n: str, at: float) -> None:
    state.queued(f"chat-{n}", at, chat=(f"u{int(n) % 7}", f"text {n}"))


def _decodable(state: OldState, n: str, at: float) -> None:
    state.queued(f"values-{n}", at, number=5, items=[1, "a"], table={"a": None}, flag=True, digits="123")


def _left(state: OldState, n: str, at: float) -> None:
    state.left_in_work(f"left-{n}", at)


def _left_locked(state: OldState, n: str, at: float) -> None:
    state.left_in_work(f"locked-{n}", at, locked=True)


def _due(state: OldState, n: str, at: float) -> None:
    state.retrying(f"due-{n}", at)


def _later(state: OldState, n: str, at: float) -> None:
    state.retrying(f"later-{n}", at + 100_000)


def _dead(state: OldState, n: str, at: float) -> None:
    state.dead(f"dead-{n}", at, chat=(f"dead{n}", "hi"))


def _dead_bodiless(state: OldState, n: str, at: float) -> None:
    state.place("dlq", f"dead-bodiless-{n}", at)


def _main_bodiless(state: OldState, n: str, at: float) -> None:
    state.place("main", f"main-bodiless-{n}", at)


def _retry_bodiless(state: OldState, n: str, at: float) -> None:
    state.place("retry", f"retry-bodiless-{n}", at)


def _no_timestamp(state: OldState, n: str, at: float) -> None:
    state.queued(f"timeless-{n}", at, without=("timestamp",))


def _list_for_body(state: OldState, n: str, at: float) -> None:
    state.place("main", f"list-{n}", at)
    state.list_instead("msg", f"list-{n}")


def _main_and_retry(state: OldState, n: str, at: float) -> None:
    id = state.queued(f"both-{n}", at)
    state.place("retry", id, at + 1)


def _retry_and_dlq(state: OldState, n: str, at: float) -> None:
    id = state.retrying(f"dying-{n}", at + 9000)
    state.place("dlq", id, at)


def _everywhere(state: OldState, n: str, at: float) -> None:
    id = state.queued(f"everywhere-{n}", at)
    state.place("retry", id, at + 1)
    state.place("dlq", id, at + 2)


def _everywhere_bodiless(state: OldState, n: str, at: float) -> None:
    for name in NAMES:
        state.place(name, f"nowhere-{n}", at)


def _milliseconds(state: OldState, n: str, at: float) -> None:
    state.queued(f"ms-{n}", at * 1000)


def _negative(state: OldState, n: str, at: float) -> None:
    state.queued(f"negative-{n}", -float(n))


def _ahead(state: OldState, n: str, at: float) -> None:
    state.queued(f"ahead-{n}", at + 190_000)


def _infinite(state: OldState, n: str, at: float) -> None:
    state.place("main", state.body(f"inf-{n}"), float("inf"))
    state.place("main", state.body(f"minus-inf-{n}"), float("-inf"))


def _odd_ids(state: OldState, n: str, at: float) -> None:
    state.queued(f"with spaces {n}", at)
    state.queued(f"ünï-漢字-{n}", at + 0.1)
    state.queued(b"\xff\xfe latin \xe9 " + n.encode(), at + 0.2)
    state.queued(f"{'long' * 500}-{n}", at + 0.3)
    state.queued(f"per%cent-{n}\nline\r\n", at + 0.4)


def _latin_1(state: OldState, n: str, at: float) -> None:
    state.queued(f"latin-{n}", at, raw_fields={"text": "café".encode("latin-1"), b"n\xe4me": b"x"})


def _huge(state: OldState, n: str, at: float) -> None:
    state.queued(f"huge-{n}", at, text="x" * 20_000)


def _ends_soon(state: OldState, n: str, at: float) -> None:
    state.queued(f"ends-{n}", at, ttl=290)


def _endless(state: OldState, n: str, at: float) -> None:
    state.queued(f"endless-{n}", at, ttl=None)


def _requeued_by_hand(state: OldState, n: str, at: float) -> None:
    state.queued(f"requeued-{n}", at, error="gave up", moved_to_dlq_at=at - 100)


def _no_number(state: OldState, n: str, at: float) -> None:
    state.queued(f"no-number-{n}", at, retry_count="many")


_KINDS = (
    _chat, _decodable, _left, _left_locked, _due, _later, _dead, _dead_bodiless, _main_bodiless, _retry_bodiless,
    _no_timestamp, _list_for_body, _main_and_retry, _retry_and_dlq, _everywhere, _everywhere_bodiless, _milliseconds,
    _negative, _ahead, _infinite, _odd_ids, _latin_1, _huge, _ends_soon, _endless, _requeued_by_hand, _no_number,
)  # fmt: skip
