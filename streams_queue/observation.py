"""What a worker tells of each message that it runs, to whoever wants to know: metrics, the log, traces.

Nobody listens unless asked to, and then a message costs one look at an empty tuple.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

from streams_queue.codec import Fields
from streams_queue.model import Lease, Message

logger = logging.getLogger(__name__)

Result = Literal["completed", "failed", "rejected", "lost", "handed_back"]
"""How a run ended: the handler returned; it is to be tried again, unless it has been often enough; it is not; another
worker may have the message, or somebody took it out; the worker stops, and the message goes back to the line."""


class Started(NamedTuple):
    """A handler that begins now. Times in seconds."""

    queue: str
    lease: Lease
    message: Message[Any]
    fields: Fields
    """The message's hash."""
    wait: float
    """Since it came into line: accepted, or due after a delay or for a retry."""


class Ended(NamedTuple):
    """A handler that has ended. Times in seconds."""

    result: Result
    reason: str
    """The class of what went wrong, as a dead letter has it; empty where nothing did."""
    error: str
    run: float
    age: float
    """Since the message was enqueued."""


class Observer(Protocol):
    """Somebody who wants to know. Both are called in the handler's own task, `ended` after all that the handler did."""

    def wants(self) -> bool:
        """Whether it wants to know of the messages claimed next; asked once a batch."""
        ...

    def started(self, started: Started) -> Any:
        """A handler begins; what is returned here is given to `ended`."""
        ...

    def ended(self, started: Started, ended: Ended, kept: Any) -> None:
        """The handler has ended."""
        ...


class Watched:
    """One run that somebody wants to know of."""

    __slots__ = ("_began", "_kept", "_now", "_started")

    def __init__(self, started: Started, observers: tuple[Observer, ...], now: Callable[[], float]) -> None:
        self._started = started
        self._now = now
        self._kept = [(observer, _guarded(observer.started, started)) for observer in observers]
        self._began = time.perf_counter()

    def end(self, result: Result, reason: str, error: str) -> None:
        """Tell how the run ended."""
        run = time.perf_counter() - self._began
        ended = Ended(result, reason, error, run, max(0.0, self._now() - self._started.message.enqueued_at))
        for observer, kept in reversed(self._kept):
            _guarded(observer.ended, self._started, ended, kept)


class Observation:
    """Who wants to know what one worker does."""

    def __init__(self, queue: str, *observers: Observer) -> None:
        self._queue = queue
        self.observers: list[Observer] = [*observers]
        self.listening: tuple[Observer, ...] = ()
        """Those who want to know of the messages claimed last."""
        self.clock_behind = 0.0
        """Seconds that this machine's clock is behind the server's, whose time stands in messages."""

    def ask(self) -> tuple[Observer, ...]:
        """Who wants to know of the messages that come next?"""
        self.listening = tuple(observer for observer in self.observers if observer.wants())
        return self.listening

    def watch(self, lease: Lease, message: Message[Any], fields: Fields) -> Watched:
        """A handler begins now."""
        wait = max(0.0, self._now() - _came_at(lease, message))
        return Watched(Started(self._queue, lease, message, fields, wait), self.listening, self._now)

    def set_clock(self, server_time: float) -> None:
        """The server's time is this now, in epoch seconds."""
        self.clock_behind = server_time - time.time()

    def _now(self) -> float:
        return time.time() + self.clock_behind


def _came_at(lease: Lease, message: Message[Any]) -> float:
    """When the message came into line: its entry's id begins with the server's time in milliseconds."""
    milliseconds = lease.entry[1:].partition("-")[0]
    return int(milliseconds) / 1000 if milliseconds.isdecimal() else message.enqueued_at


def _guarded(call: Callable[..., Any], *arguments: Any) -> Any:
    """The call's answer; whatever it raises must not touch the message."""
    try:
        return call(*arguments)
    except Exception:
        logger.exception("an observer of messages failed")
        return None
