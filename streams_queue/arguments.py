"""What callers ask for, checked before anything is written."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, Self

from streams_queue.answers import NewMessage
from streams_queue.errors import ConfigurationError, InvalidMessage
from streams_queue.model import LETTERS, Priority

LONGEST = 100 * 365 * 86400.0
"""Seconds: a longer time is a mistake, and before long more than Redis takes."""

MOST_REPLICAS = 1000


class Conditions(NamedTuple):
    """On what conditions messages are enqueued."""

    priority: Priority
    delay: float
    at: float | None
    ttl: float | None

    @classmethod
    def checked(cls, priority: Any, delay: Any, at: Any, ttl: Any) -> Self:
        """These, as `Queue.enqueue` takes them.

        Raises:
            InvalidMessage: one of them is not what it takes.
        """
        check_priority(priority)
        if delay is not None and not (_is_time(delay) or (_is_number(delay) and delay == 0)):
            raise InvalidMessage(f"delay {delay!r:.200} is not a number of seconds from 0 to {LONGEST:.0f}")
        if ttl is not None and not _is_time(ttl):
            raise InvalidMessage(f"ttl {ttl!r:.200} is not a number of seconds above 0, up to {LONGEST:.0f}")
        if delay is not None and at is not None:
            raise InvalidMessage(f"delay {delay!r:.200} and at {at!r:.200} both say when it is due: give one of them")
        return cls(priority, delay or 0.0, None if at is None else _moment(at), ttl)

    def message(self, id: str, slot: str | None, fields: Sequence[bytes]) -> NewMessage:
        """A message that is enqueued so."""
        return NewMessage(id, self.priority, self.delay, self.ttl, slot, fields, at=self.at)


def check_priority(priority: Any) -> None:
    """Nothing, where there is such a priority; else `InvalidMessage`."""
    if not isinstance(priority, str) or priority not in LETTERS:
        raise InvalidMessage(f"priority {priority!r:.200} is unknown: use one of {', '.join(LETTERS)}")


def check_replicas(replicas: Any) -> None:
    """Nothing, where so many replicas can be asked for; else `InvalidMessage`."""
    if type(replicas) is not int or not 0 <= replicas <= MOST_REPLICAS:
        raise InvalidMessage(f"replicas {replicas!r:.200} is not a whole number from 0 to {MOST_REPLICAS}")


def positive(name: str, value: float) -> float:
    """The value, where it is a number above 0 that is no mistake; else `ConfigurationError`."""
    if not _is_time(value):
        raise ConfigurationError(f"{name}={value!r} is not a number above 0, up to {LONGEST:.0f}")
    return value


def whole(name: str, value: float) -> int:
    """As `positive`, rounded, and 1 at least."""
    return max(1, round(positive(name, value)))


def _is_time(value: Any) -> bool:
    return _is_number(value) and bool(0 < value <= LONGEST)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _moment(at: Any) -> float:
    """Epoch seconds. How far off they may be needs no exact clock: that of this process will do."""
    if isinstance(at, datetime):
        if at.utcoffset() is None:
            raise InvalidMessage(f"at {at!r:.200} has no time zone: write at.astimezone() if it is local time")
        at = at.timestamp()
    if not _is_number(at) or not at >= 0:
        raise InvalidMessage(f"at {at!r:.200} is neither epoch seconds from 0 on nor a datetime with a time zone")
    if at > time.time() + LONGEST:
        raise InvalidMessage(f"at {at!r} is more than {LONGEST:.0f} seconds away: epoch seconds are no milliseconds")
    return float(at)
