"""Every name of the old documentation, where it was and as it was."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from streams_queue_compat.redis_queue_manager import RedisQueueManager

PLACES = ("bot_logic.services", "streams_queue_compat")

CONSTANTS: dict[str, dict[str, object]] = {
    "redis_queue_manager": {
        "STATUS_QUEUED": "queued",
        "STATUS_PROCESSING": "processing",
        "STATUS_COMPLETED": "completed",
        "STATUS_ERROR": "error",
        "STATUS_RETRY": "retry",
    },
    "chat_api_queue": {
        "CHAT_API_LOCK_KEY": "chat_api:lock",
        "CHAT_API_QUEUE_KEY": "chat_api:queue",
        "CHAT_API_STATUS_KEY": "chat_api:status",
        "CHAT_API_STATS_KEY": "chat_api:stats",
        "LOCK_EXPIRY": 300,
        "QUEUE_ITEM_EXPIRY": 3600,
    },
}
ATTRIBUTES = {
    "prefix": "p",
    "default_ttl": 3600,
    "max_retries": 3,
    "retry_delay_base": 5,
    "lock_expiry": 300,
    "dedup_expiry": 3600,
    "queue_main_key": "p:queue:main",
    "queue_retry_key": "p:queue:retry",
    "queue_dlq_key": "p:queue:dlq",
    "msg_prefix": "p:msg:",
    "dedup_prefix": "p:dedup:",
    "lock_prefix": "p:lock:",
    "stats_key": "p:stats",
}
METHODS = {
    "enqueue": "message_data, callback=None",
    "get_position": "message_id",
    "get_message": "message_id",
    "update_message": "message_id, updates",
    "remove_message": "message_id",
    "move_to_dlq": "message_id, error",
    "retry_message": "message_id",
    "get_next_message": "",
    "get_queue_length": "include_retry=True, include_dlq=False",
    "get_stats": "",
    "try_acquire_lock": "message_id, owner, timeout=0",
    "release_lock": "message_id, owner",
    "start_processor": "process_func, poll_interval=1.0",
    "stop_processor": "timeout=5.0",
    "clear_deduplication_key": "user_id, message",
    "clear_deduplication_key_by_id": "message_id",
}
FUNCTIONS = {
    "enqueue_chat_request": "user_id, message, source_type, source_id, response_token, chat_id, chat_type, message_id, "
    "status_callback=None",
    "get_queue_position": "request_id",
    "get_user_request": "user_id",
    "get_queue_length": "",
    "get_next_request": "",
    "update_request_status": "request_id, status",
    "remove_request": "request_id",
    "process_chat_request": "request",
    "process_chat_api_queue": "",
    "start_queue_processor": "",
    "stop_queue_processor": "",
    "try_acquire_chat_api_lock": "timeout=0",
    "release_chat_api_lock": "",
}
REQUEST = (
    "request_id", "user_id", "message", "source_type", "source_id", "response_token", "chat_id", "chat_type",
    "message_id", "timestamp", "status", "retry_count", "dedup_key",
)  # fmt: skip


def shape(function: Any) -> str:
    """The parameters as one writes them, annotations and self left out."""
    return ", ".join(
        name if parameter.default is parameter.empty else f"{name}={parameter.default!r}"
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("module", CONSTANTS)
def test_constants(place, module):
    found = importlib.import_module(f"{place}.{module}")
    assert {name: getattr(found, name) for name in CONSTANTS[module]} == CONSTANTS[module]


def test_the_same_objects_at_both_places():
    for module in CONSTANTS:
        there, here = (importlib.import_module(f"{place}.{module}") for place in PLACES)
        assert set(here.__all__) <= set(vars(there))
        assert all(getattr(there, name) is getattr(here, name) for name in here.__all__)


def test_a_star_import_gives_what_is_documented_and_no_more():
    star: dict[str, Any] = {}
    exec("from bot_logic.services.chat_api_queue import *", star)
    star.pop("__builtins__")
    assert set(star) == {*CONSTANTS["chat_api_queue"], *FUNCTIONS, "QueuedRequest", "configure"}
    star = {}
    exec("from bot_logic.services.redis_queue_manager import *", star)
    star.pop("__builtins__")
    assert set(star) == {*CONSTANTS["redis_queue_manager"], "RedisQueueManager"}


def test_the_manager():
    assert shape(RedisQueueManager) == "prefix, default_ttl=3600"
    manager = RedisQueueManager("p")
    assert {name: getattr(manager, name) for name in ATTRIBUTES} == ATTRIBUTES
    assert RedisQueueManager("p", 60).default_ttl == RedisQueueManager(prefix="p", default_ttl=60).default_ttl == 60


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    method = getattr(RedisQueueManager, name)
    assert inspect.iscoroutinefunction(method)
    assert shape(method).replace("timeout=0.0", "timeout=0") == METHODS[name]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(place, name):
    function = getattr(importlib.import_module(f"{place}.chat_api_queue"), name)
    assert inspect.iscoroutinefunction(function)
    assert shape(function).replace("timeout=0.0", "timeout=0") == FUNCTIONS[name]


def test_the_request():
    request_class = importlib.import_module("bot_logic.services.chat_api_queue").QueuedRequest
    assert shape(request_class.notify_status) == "status, response=None, error=None"
    assert inspect.iscoroutinefunction(request_class.notify_status)
    request = request_class.from_dict({name: f"a {name}" for name in REQUEST})
    assert request.to_dict() == {name: getattr(request, name) for name in REQUEST}
    assert request.status_callback is None
