"""The names that others rely on."""

from __future__ import annotations

import importlib
import inspect
import typing
from importlib import resources
from typing import Any

import streams_queue
from streams_queue import Queue, Reject, Retry, ShardedQueue, Worker
from streams_queue.queue import Options

PUBLIC = [
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


def test_what_is_public():
    assert streams_queue.__all__ == PUBLIC


def test_everything_public_is_there_and_says_what_it_is_for():
    for name in PUBLIC:
        assert inspect.getdoc(getattr(streams_queue, name)), name


def test_import_star():
    names: dict[str, Any] = {}
    exec("from streams_queue import *", names)
    assert set(PUBLIC) <= set(names)


def test_each_module_has_a_docstring():
    for file in resources.files("streams_queue").iterdir():
        if file.name.endswith(".py") and file.name != "__main__.py":
            module = importlib.import_module(f"streams_queue.{file.name.removesuffix('.py')}".removesuffix(".__init__"))
            assert module.__doc__, file.name


def defaults(function: Any) -> dict[str, Any]:
    """Names of arguments, with their defaults; ``...`` where there is none."""
    return {
        name: ... if parameter.default is inspect.Parameter.empty else parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    }


def test_signatures():
    assert defaults(Queue) == {
        "prefix": ..., "url": None, "payload": None, "ttl": None, "dedup_expiry": 3600, "result_ttl": 300,
        "dead_letter_ttl": 30 * 86400, "max_payload": 1 << 20,
    }  # fmt: skip
    assert defaults(Queue.enqueue) == {
        "payload": ..., "id": None, "priority": "normal", "delay": None, "at": None, "unique_key": None, "ttl": None,
        "replicas": 0,
    }  # fmt: skip
    assert defaults(Worker) == {
        "queue": ..., "concurrency": 32, "lease": 30.0, "max_retries": 3, "retry_delay": 5.0, "max_deliveries": 3,
        "timeout": 600.0, "grace": 30.0, "poll_interval": 1.0, "one_at_a_time_per": None,
    }  # fmt: skip
    assert defaults(Worker.run) == {"burst": False}
    assert defaults(Queue.result) == {"id": ..., "timeout": None}
    assert (
        defaults(Queue.position)
        == defaults(Queue.ahead)
        == defaults(Queue.get)
        == defaults(Queue.remove)
        == {"id": ...}
    )
    assert defaults(Queue.length) == defaults(Queue.stats) == defaults(Queue.pause) == defaults(Queue.resume) == {}
    assert next(iter(defaults(Queue.enqueue_many).items())) == ("payloads", ...)
    assert defaults(Retry)["delay"] is None
    assert defaults(Reject) == {"reason": ...}


def test_a_sharded_queue_takes_what_a_queue_takes():
    kind, own = typing.get_type_hints(Options), set(defaults(ShardedQueue)) - {"options"}
    assert own == {"prefix", "url", "payload", "shards", "key"}
    assert set(kind) == set(defaults(Queue)) - own
    for name, method in inspect.getmembers(Queue, inspect.isfunction):
        if name != "__init__":
            assert defaults(method) == defaults(getattr(ShardedQueue, name)), name


def test_dead_letters():
    queue: Queue[Any] = Queue("q", url="redis://127.0.0.1:1")
    assert defaults(queue.dead_letters.list)["limit"] == 50
    assert defaults(queue.dead_letters.requeue) == defaults(queue.dead_letters.delete) == {"id": ...}


def test_it_is_typed():
    assert (resources.files("streams_queue") / "py.typed").is_file()


def test_errors_form_one_tree():
    for name in PUBLIC:
        thing = getattr(streams_queue, name)
        if isinstance(thing, type) and issubclass(thing, Exception) and thing not in (Retry, Reject):
            assert issubclass(thing, streams_queue.StreamsQueueError), name
    assert not issubclass(Retry, streams_queue.StreamsQueueError)
