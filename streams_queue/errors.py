"""Every error a caller of streams-queue can meet.

    StreamsQueueError
    ├── ConfigurationError      a setting, a URL, a permission: a person has to change something
    ├── UnsupportedServer       the server answers, but is too old
    ├── QueueUnavailable        the server cannot do it now; later it may
    ├── InvalidMessage          the payload or the id was refused before any write
    ├── Rejected                the queue declined, with `retry_after`
    │   ├── QueueFull
    │   └── RateLimited
    ├── LeaseLost               the message belongs to another worker by now
    ├── HandlerFailed           the message ended as a dead letter
    ├── Expired                 the message's TTL ran out before it was finished
    ├── Removed                 somebody took the message out
    ├── NotFound                no trace of such a message
    └── MigrationError          a migration step could not be taken or proved

No exception of redis-py leaves the package: `connection.translate` maps every one of them to this tree.
All of them can be pickled, and none carries a password.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ConfigurationError",
    "Expired",
    "HandlerFailed",
    "InvalidMessage",
    "LeaseLost",
    "MigrationError",
    "NotFound",
    "QueueFull",
    "QueueUnavailable",
    "RateLimited",
    "Rejected",
    "Removed",
    "StreamsQueueError",
    "UnsupportedServer",
]


class StreamsQueueError(Exception):
    """The root of the tree. Catch it to catch everything this package raises on purpose."""


class ConfigurationError(StreamsQueueError):
    """Raised when a setting, URL, credential or permission is wrong.

    Trying again does not help; the text names the setting, what is wrong with it and the remedy.
    """


class UnsupportedServer(StreamsQueueError):
    """Raised on connecting to a server older than Redis 6.2. Upgrade it, or point to another one."""


class QueueUnavailable(StreamsQueueError):
    """Raised when the server is unreachable, overloaded, read-only, loading or out of memory.

    Try again later. The call may or may not have been carried out: `enqueue` with an explicit id is
    safe to send again, since a known id is a duplicate.
    """


class InvalidMessage(StreamsQueueError):
    """Raised before any write when an id or a payload breaks the rules. Correct it; the text says how."""


class Rejected(StreamsQueueError):
    """Raised when the queue declines a message that is in itself valid; nothing of it was written.

    `retry_after` is the number of seconds after which a new attempt makes sense, or None when the
    server cannot know. It is no reservation: others may come first.

    `receipts` says what became of each message that `enqueue_many` was given: its receipt where it is
    in the queue, None where it is not. The first that was refused and all after it are not, of a
    `ShardedQueue` in that shard. To go on, wait, then send those with None again, in their order.
    Empty for a single message.
    """

    def __init__(self, message: str = "", retry_after: float | None = None, receipts: tuple[Any, ...] = ()) -> None:
        super().__init__(message, retry_after, receipts)
        self.retry_after = retry_after
        self.receipts = receipts

    def __str__(self) -> str:
        return str(self.args[0])


class QueueFull(Rejected):
    """Raised by `enqueue` when the queue has as many unfinished messages as its limit ``max_length`` allows.

    Slow down until workers have finished some; `retry_after` is None, since nobody knows when.
    """


class RateLimited(Rejected):
    """Raised by `enqueue` when the limit ``accept`` or ``accept_per_key`` is spent. Wait `retry_after` seconds."""


class LeaseLost(StreamsQueueError):
    """Raised when a message that was being worked on has passed to another worker.

    Write nothing on its behalf: whoever holds it now finishes it.
    """


class HandlerFailed(StreamsQueueError):
    """Raised by `result` when the message ended as a dead letter.

    `error` is the handler's last error as text, `reason` says why the queue gave up. The message
    stands among the dead letters, from where it can be requeued.
    """

    def __init__(self, error: str, reason: str) -> None:
        super().__init__(error, reason)
        self.error = error
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}: {self.error}"


class Expired(StreamsQueueError):
    """Raised by `result` when the message's TTL ran out before it was finished. Enqueue it anew."""


class Removed(StreamsQueueError):
    """Raised by `result` when somebody removed the message before it was finished."""


class NotFound(StreamsQueueError):
    """Raised when nothing is known of a message (a wrong id, or its marker's TTL has ended) or of a queue to verify."""


class MigrationError(StreamsQueueError):
    """Raised when a migration step cannot start or its check fails; the text names what is left to do."""
