"""What a queue declines at enqueue, and what it holds back at work: agreed in ``P:meta``, obeyed by every script."""

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from streams_queue.codec import field_of, name_of
from streams_queue.durations import seconds_of
from streams_queue.errors import ConfigurationError

NORMAL_SHARE, LOW_SHARE = 0.2, 0.05

MOST = 1_000_000_000
"""Messages: a higher limit is none."""

MOST_AT_ONCE = 1000
"""Messages of one key: a claim that finds so many of them at work looks whether each still is."""

_WHOLE = {"max_length": MOST, "concurrency_per_key": MOST_AT_ONCE}

LONGEST_PERIOD = 366 * 86400.0
"""Seconds of a rate."""

_RATE = re.compile(r"(\d{1,10})\s*/\s*(?:(\d+(?:\.\d+)?)\s*)?([smhd])")
_STORED_RATE = re.compile(r"(\d{1,10})/(\d+(?:\.\d+)?(?:e-?\d+)?)")


class Rate(msgspec.Struct, frozen=True):
    """So many messages in each period, evenly refilled; as many at once after a quiet period.

    Args:
        count: messages, above 0.
        per: seconds, above 0.

    Raises:
        ConfigurationError: a number that is out of bounds.
    """

    count: int
    per: float = 1.0

    def __post_init__(self) -> None:
        if type(self.count) is not int or not 0 < self.count <= MOST:
            raise ConfigurationError(f"rate count={self.count!r} is not a whole number from 1 to {MOST}")
        if type(self.per) not in (int, float) or not 0.001 <= self.per <= LONGEST_PERIOD:
            raise ConfigurationError(f"rate per={self.per!r} is not a number of seconds from 0.001 to a year")

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """From what people write: ``30/s``, ``5/10s``, ``100/1m``.

        Raises:
            ConfigurationError: it is none of these.
        """
        match = _RATE.fullmatch(str(text).strip())
        if match is None:
            raise ConfigurationError(f"{text!r} is no rate: write for example 30/s, 5/10s or 100/1m")
        return cls(int(match[1]), seconds_of(f"{match[2] or 1}{match[3]}"))

    def __str__(self) -> str:
        for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
            if self.per % size == 0:
                periods = round(self.per / size)
                return f"{self.count}/{periods if periods > 1 else ''}{unit}"
        return f"{self.count}/{self.per:g}s"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one queue, for all producers and workers of it. None is no limit.

    They hold from the next transition on. Producers of the old kind, which write the keys themselves, cannot be
    refused at enqueue; at work their messages count as all others.

    Raises:
        ConfigurationError: a number out of bounds, a limit per key without a ``key``, or shares of 1 and more in sum.
    """

    key: str | None = None
    """The payload's field whose value tells keys apart: ``"user_id"``. A message without it has no key, nor
    has one whose value is None or empty. A number and its text are one key."""
    max_length: int | None = None
    """Unfinished messages, above which `enqueue` raises `QueueFull`."""
    accept: Rate | None = None
    """What `enqueue` accepts; above it raises `RateLimited`."""
    accept_per_key: Rate | None = None
    """The same for each key."""
    work: Rate | None = None
    """What all workers together begin."""
    work_per_key: Rate | None = None
    """The same for each key."""
    concurrency_per_key: int | None = None
    """How many messages of one key are worked on at the same time, over all workers, in order of arrival."""
    normal_share: float = NORMAL_SHARE
    """The share of the slots that normal messages get at least while high ones wait; 0: none."""
    low_share: float = LOW_SHARE
    """The share of the slots that low messages get at least while others wait; 0: none."""

    def __post_init__(self) -> None:
        if self.key is not None and not _is_name(self.key):
            raise ConfigurationError(f"key={self.key!r} is not the name of a payload's field")
        for name in ("accept", "accept_per_key", "work", "work_per_key"):
            if not isinstance(getattr(self, name), Rate | None):
                raise ConfigurationError(f"{name}={getattr(self, name)!r} is not a Rate: write Rate(30, per=1.0)")
        for name, most in _WHOLE.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 0 < value <= most):
                raise ConfigurationError(f"{name}={value!r} is not a whole number from 1 to {most}")
        for name in ("accept_per_key", "work_per_key", "concurrency_per_key"):
            if getattr(self, name) is not None and self.key is None:
                raise ConfigurationError(f"{name} needs a key: name the payload's field that tells keys apart")
        for name in ("normal_share", "low_share"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise ConfigurationError(f"{name}={value!r} is not a number from 0 to below 1")
        if self.normal_share + self.low_share >= 1:
            raise ConfigurationError(
                f"normal_share={self.normal_share:g} and low_share={self.low_share:g} leave nothing for high ones: "
                "their sum is below 1"
            )


def to_meta(limits: Limits) -> dict[str, str]:
    """The fields of ``P:meta`` that say so; what is at its default has none.

    Raises:
        ConfigurationError: these are no limits.
    """
    if not isinstance(limits, Limits):
        raise ConfigurationError(f"{limits!r:.200} is no Limits: write Limits(max_length=1000), or Limits() for none")
    return {
        f"limit_{name}": _written(name, getattr(limits, name))
        for name in limits.__struct_fields__
        if getattr(limits, name) != getattr(_NONE, name)
    }


def from_meta(meta: Mapping[str, str]) -> Limits:
    """The limits that ``P:meta`` says; a field that somebody wrote wrongly counts as the scripts take it: as none."""
    found: dict[str, Any] = {}
    for name in _NONE.__struct_fields__:
        if (text := meta.get(f"limit_{name}")) is not None and (value := value_in(name, text)) is not None:
            found[name] = value
    try:
        return Limits(**found)
    except ConfigurationError:  # together they make no sense: as limits per key where somebody took the key away
        per_key = {name: value for name, value in found.items() if not name.endswith(("_per_key", "_share"))}
        return Limits(**per_key)


MEANINGS = {
    "key": "The payload's field that tells keys apart, as user_id.",
    "max_length": "Unfinished messages, above which none is accepted.",
    "accept": "What is accepted.",
    "accept_per_key": "What is accepted of one key.",
    "work": "What all workers together begin.",
    "work_per_key": "What they begin of one key.",
    "concurrency_per_key": "Of one key, worked on at the same time; 1 keeps their order.",
    "normal_share": "The least share of the slots for normal priority.",
    "low_share": "The least share of the slots for low priority.",
}
"""What each limit is, for who sets it."""


def spelt(name: str) -> str:
    """A limit's name as people write it: ``max-length``."""
    return name.replace("_", "-")


def text_of(value: Any) -> str:
    """The value of a limit as people write it; empty for none."""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def parsed(name: str, text: str) -> Any:
    """The value that people have written for a limit; an empty text is none.

    Raises:
        ConfigurationError: this limit is not written so.
    """
    text = text.strip()
    if not text:
        return getattr(_NONE, name)
    if name == "key":
        return text
    try:
        if name in _WHOLE:
            return int(text)
        return float(text) if name.endswith("_share") else Rate.parse(text)
    except ValueError:
        raise ConfigurationError(f"{spelt(name)}: {text!r:.80} is no number") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{spelt(name)}: {error}") from None


FIELDS = tuple(f"limit_{name}" for name in Limits.__struct_fields__)
"""All fields of ``P:meta`` that say limits."""

_NONE = Limits()


def _is_name(key: Any) -> bool:
    try:
        return isinstance(key, str) and bool(key.encode())
    except UnicodeEncodeError:
        return False


def _written(name: str, value: Any) -> str:
    if name == "key":
        return str(field_of(value))
    return f"{value.count}/{float(value.per)!r}" if isinstance(value, Rate) else repr(value)


def value_in(name: str, text: str) -> Any:
    """The value of one limit, from its field in ``P:meta``; None where somebody wrote it wrongly."""
    try:
        if name == "key":
            return name_of(text) or None
        if name.endswith("_share"):
            share = float(text)
            return share if 0 <= share < 1 and math.isfinite(share) else None
        if name in _WHOLE:
            return int(text) if 0 < int(text) <= _WHOLE[name] else None
        match = _STORED_RATE.fullmatch(text)
        return Rate(int(match[1]), float(match[2])) if match else None
    except (ValueError, ConfigurationError):
        return None
