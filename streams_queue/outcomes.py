"""What may come of a handler's run, and what a worker makes of it."""

import math
from decimal import Decimal
from typing import Any

import msgspec

from streams_queue.codec import encoded_key
from streams_queue.errors import InvalidMessage


class Retry(Exception):  # an instruction, not an error
    """Raise it in a handler to have the message tried again later; it counts as a retry, unless it pauses a key.

    Args:
        delay: seconds until then, none where it is negative; None: the worker's back-off.
        key: pauses this key for the delay, for all workers: the value of the payload's field that `Limits.key` names,
            as when a chat platform asks for patience in one chat. Nothing is charged, however often. A message of this
            key keeps its place in line and goes first; another one waits for the delay by itself. Where the queue has
            no `Limits.key`, no key is paused, and the worker says so.

    Raises:
        InvalidMessage: the key is empty, cannot be encoded, or is of a type that no payload's field has; the delay is
            no number.
    """

    def __init__(self, delay: float | None = None, key: str | float | bytes | None = None) -> None:
        given: Any = delay
        is_number = isinstance(given, (int, float, Decimal)) and not isinstance(given, bool)
        if given is not None and not (is_number and not math.isnan(given)):
            raise InvalidMessage(f"delay {given!r:.200} is not a number of seconds")
        super().__init__("retry" if delay is None else f"retry in {delay:g} s")
        self.delay = None if delay is None else float(delay)
        self.key = b"" if key is None else encoded_key(key)
        """As a payload holds it; empty without one."""


class Reject(Exception):  # an instruction, not an error
    """Raise it in a handler to make the message a dead letter at once.

    Args:
        reason: the error's text that the dead letter shows.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class Policy(msgspec.Struct, kw_only=True):
    """What a worker does with outcomes. Times in seconds."""

    max_retries: int
    retry_delay: float
    max_deliveries: int
    timeout: float
    result_ttl: int
    dead_letter_ttl: int
    dedup_expiry: int


class Completed(msgspec.Struct, frozen=True):
    """The handler returned; the encoded result, empty without one."""

    result: bytes


class Failed(msgspec.Struct, frozen=True):
    """The handler raised, or took too long."""

    delay: float
    reason: str
    error: str
    key: bytes = b""
    """Paused for the delay; then nothing is charged."""


class Rejected(msgspec.Struct, frozen=True):
    """It must not be tried again."""

    reason: str
    error: str


Outcome = Completed | Failed | Rejected
