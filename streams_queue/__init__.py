"""streams-queue: a message queue on Redis Streams that knows each message's place in line."""

from streams_queue.errors import (
    ConfigurationError,
    Expired,
    HandlerFailed,
    InvalidMessage,
    LeaseLost,
    MigrationError,
    NotFound,
    QueueFull,
    QueueUnavailable,
    RateLimited,
    Rejected,
    Removed,
    StreamsQueueError,
    UnsupportedServer,
)
from streams_queue.limits import Limits, Rate
from streams_queue.model import Message, Receipt, Stats, Status
from streams_queue.outcomes import Reject, Retry
from streams_queue.queue import Queue
from streams_queue.sharding import ShardedQueue
from streams_queue.worker import Worker

__all__ = [
    "ConfigurationError",
    "Expired",
    "HandlerFailed",
    "InvalidMessage",
    "LeaseLost",
    "Limits",
    "Message",
    "MigrationError",
    "NotFound",
    "Queue",
    "QueueFull",
    "QueueUnavailable",
    "Rate",
    "RateLimited",
    "Receipt",
    "Reject",
    "Rejected",
    "Removed",
    "Retry",
    "ShardedQueue",
    "Stats",
    "Status",
    "StreamsQueueError",
    "UnsupportedServer",
    "Worker",
]
