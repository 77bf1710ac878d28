"""What a worker tells of each message that it runs, to whoever wants to know: metrics, the log, traces.

Nobody listens unless asked to, and then a message costs one look at an empty tuple.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

from streams_queue.codec import Fields
from streams_queue.model import Lease, Message

logger = logging.getLogger(__name__)

Result = Literal["completed", "failed", "rejected", "lost", "handed_back"]
"""How a run ended: the handler returned; it is to be tried again, unless it has been often enough; it is not; another
worker may have the message, or somebody took it out; the worker stops, and the message goes back to the line."""


class Run:
    """One message's run that somebody wants to know of. Times in seconds.

    Every message makes one, so what not everybody looks at is worked out when it is asked for.
    """

    __slots__ = (
        "_behind", "_lease", "_started_at", "error", "fields", "message", "queue", "reason", "result", "took",
    )  # fmt: skip

    def __init__(
        self,
        observation: "Observation",
        lease: Lease,
        message: Message[Any],
        fields: Fields,
    ) -> None:
        self.queue = observation.queue
        self.message = message
        self.fields = fields
        """The message's hash."""
        self.result: Result = "completed"
        self.reason = ""
        """The class of what went wrong, as a dead letter has it; empty where nothing did."""
        self.error = ""
        self.took = 0.0
        """From the handler's beginning to its end, once it has ended; a batch's is that of each of its messages."""
        self._lease = lease
        self._behind = observation.clock_behind
        self._started_at = time.time() + self._behind

    @property
    def wait(self) -> float:
        """From when the message came into line until its handler began: accepted, or due after a delay or for a retry.

        An entry's id begins with the server's time in milliseconds.
        """
        milliseconds = self._lease.entry[1:].partition("-")[0]
        came_at = int(milliseconds) / 1000 if milliseconds.isdecimal() else self.message.enqueued_at
        return max(0.0, self._started_at - came_at)

    @property
    def age(self) -> float:
        """From the message's enqueue until now."""
        return max(0.0, time.time() + self._behind - self.message.enqueued_at)


class Watch:
    """One run of a handler that somebody looks at: of a message, or of a batch."""

    __slots__ = ("_began", "_kept", "_observers", "_runs")

    def __init__(self, observation: "Observation", runs: Sequence[Run]) -> None:
        self._runs = runs
        self._observers = observation.listening
        self._kept: list[Any] = []
        for observer in self._observers:
            try:
                self._kept.append(observer.started(runs))
            except Exception:  # whatever it is, it must not touch the messages
                logger.exception("an observer of messages failed")
                self._kept.append(None)
        self._began = time.perf_counter()

    def end(self, ends: Iterable[tuple[Result, str, str]]) -> None:
        """The handler has ended, with this result, reason and error for each of the messages."""
        took = time.perf_counter() - self._began
        for run, (result, reason, error) in zip(self._runs, ends, strict=True):
            run.took, run.result, run.reason, run.error = took, result, reason, error
        for observer, kept in zip(reversed(self._observers), reversed(self._kept), strict=True):
            try:
                observer.ended(self._runs, kept)
            except Exception:
                logger.exception("an observer of messages failed")


class Observer(Protocol):
    """Somebody who wants to know. `started` and `ended` are called in the handler's own task, `ended` after all that
    the handler did; with one run, or with those of a batch.
    """

    def wants(self) -> bool:
        """Whether it wants to know of the messages claimed next; asked once a batch."""
        ...

    def started(self, runs: Sequence[Run]) -> Any:
        """A handler begins; what is returned here is given to `ended`."""
        ...

    def ended(self, runs: Sequence[Run], kept: Any) -> None:
        """The handler has ended."""
        ...


class Observation:
    """Who wants to know what one worker does."""

    def __init__(self, queue: str, *observers: Observer) -> None:
        self.queue = queue
        self.observers: list[Observer] = [*observers]
        self.listening: tuple[Observer, ...] = ()
        """Those who want to know of the messages claimed last."""
        self.clock_behind = 0.0
        """Seconds that this machine's clock is behind the server's, whose time stands in messages."""

    def beside(self) -> "Observation":
        """The same observers, for messages of a server with a clock of its own."""
        other = Observation(self.queue)
        other.observers = self.observers
        return other

    def ask(self) -> tuple[Observer, ...]:
        """Who wants to know of the messages that come next?"""
        self.listening = tuple(observer for observer in self.observers if observer.wants())
        return self.listening

    def set_clock(self, server_time: float) -> None:
        """The server's time is this now, in epoch seconds."""
        self.clock_behind = server_time - time.time()
