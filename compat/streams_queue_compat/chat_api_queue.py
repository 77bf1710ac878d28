"""The chat queue, as documented: functions over one `RedisQueueManager` with the prefix ``chat_api``."""

import asyncio
import logging
import os
import uuid
from typing import Any

import msgspec
from msgspec.structs import replace

from streams_queue.codec import decode_values, text
from streams_queue.errors import ConfigurationError
from streams_queue.execution import Execution, current, encoded_result, failure
from streams_queue.model import Status
from streams_queue.outcomes import Failed, Reject, Retry
from streams_queue.redaction import scrubbed
from streams_queue.transitions import Transitions
from streams_queue.worker import Worker
from streams_queue_compat.documented import documented, in_its_loop
from streams_queue_compat.handlers import Handler, Services, find_handler
from streams_queue_compat.logs import log_attempt, log_error
from streams_queue_compat.processor import JointLock, Processor
from streams_queue_compat.redis_queue_manager import (
    STATUS_COMPLETED,
    STATUS_ERROR,
    STATUS_PROCESSING,
    RedisQueueManager,
)
from streams_queue_compat.requests import QueuedRequest, StatusCallback

__all__ = [
    "CHAT_API_LOCK_KEY",
    "CHAT_API_QUEUE_KEY",
    "CHAT_API_STATS_KEY",
    "CHAT_API_STATUS_KEY",
    "LOCK_EXPIRY",
    "QUEUE_ITEM_EXPIRY",
    "QueuedRequest",
    "configure",
    "enqueue_chat_request",
    "get_next_request",
    "get_queue_length",
    "get_queue_position",
    "get_user_request",
    "process_chat_api_queue",
    "process_chat_request",
    "release_chat_api_lock",
    "remove_request",
    "start_queue_processor",
    "stop_queue_processor",
    "try_acquire_chat_api_lock",
    "update_request_status",
]

logger = logging.getLogger("bot_logic.services.chat_api_queue")

CHAT_API_LOCK_KEY = "chat_api:lock"
CHAT_API_QUEUE_KEY = "chat_api:queue"
CHAT_API_STATUS_KEY = "chat_api:status"
CHAT_API_STATS_KEY = "chat_api:stats"
LOCK_EXPIRY = 300
QUEUE_ITEM_EXPIRY = 3600

GLOBAL_LOCK = "global_lock"
OLD_WORKER = "processor"
"""The owner of the global lock that a worker of the old code gives."""
NEW_WORKERS = "streams-queue"
"""The owner that all workers of this code give, and hold the lock together."""

HANDLER_TIMEOUT = 600.0
"""Seconds that answering a request may take."""

ANSWER = "_sq_answer"
"""The field of the hash with the text that is to be sent: an attempt that finds it has only that to do."""

_USER = "user_id"
_GLOBAL_LOCK_TTL = 30.0
_STOP_TIMEOUT = 5.0


class _ChatQueue(RedisQueueManager):
    """The queue of chat requests: it finds a user's messages too."""

    _indexes_users = True


class _Chat:
    """What the functions of this module share."""

    def __init__(self) -> None:
        self.queue = _ChatQueue("chat_api", QUEUE_ITEM_EXPIRY)
        self.handler: Handler | None = None
        self.services: Services | None = None
        self.processor: Processor | None = None

    def bind(self) -> None:
        """Find out how requests are answered, and bind it.

        Raises:
            ConfigurationError: nothing says how.
        """
        self.handler = self.handler or find_handler()
        if self.handler is None:
            self.services = Services()

    def new_processor(self) -> Processor:
        """A processor that is not started.

        Raises:
            ConfigurationError: nothing says how requests are answered, ``CHAT_API_CONCURRENCY`` is no number above 0,
                or ``CHAT_API_ONE_AT_A_TIME`` neither 0 nor 1.
        """
        self.bind()
        concurrency, in_order = _concurrency(), _in_order()
        queue = self.queue

        async def make_worker() -> Worker[dict[str, Any]]:
            # The worker's own limit comes later than ours, at which the user can be told.
            timeout = 2 * HANDLER_TIMEOUT
            key = await _agree_on_order((await queue._engine()).transitions, in_order=in_order)
            return await queue._worker(
                _process, poll_interval=1.0, concurrency=concurrency, timeout=timeout, one_at_a_time_per=key
            )

        joint_lock = JointLock(f"{queue.lock_prefix}{GLOBAL_LOCK}", NEW_WORKERS, _GLOBAL_LOCK_TTL)
        return Processor(make_worker, joint_lock)


_chat = _Chat()


def configure(handler: Handler | None) -> None:
    """Answer chat requests with this function instead of the application's services; None: with those again.

    Args:
        handler: ``async (QueuedRequest) -> response text``. What it raises has the request tried again.
    """
    _chat.handler = handler
    _chat.services = None


async def enqueue_chat_request(
    user_id: str,
    message: str,
    source_type: str,
    source_id: str,
    response_token: str,
    chat_id: str,
    chat_type: str,
    message_id: str,
    status_callback: StatusCallback | None = None,
) -> str | None:
    """Put a chat request in the queue. O(log n).

    Args:
        user_id: of the user who asks; the same text of the same user is accepted once until it is answered.
        message: the text.
        source_type: the chat platform.
        source_id: where on it the answer goes.
        response_token: the bot's secret.
        chat_id: of the chat.
        chat_type: of the chat.
        message_id: the platform's id of the message.
        status_callback: ``await cb(request, status, response, error)`` for ``queued``, ``processing``, ``retry``,
            ``completed`` and ``error``, also when another process does the work.

    Returns:
        The request's id, the existing one for a duplicate; None when it was refused or Redis is away.
    """
    request = QueuedRequest(
        request_id=str(uuid.uuid4()),
        user_id=user_id,
        message=message,
        source_type=source_type,
        source_id=source_id,
        response_token=response_token,
        chat_id=chat_id,
        chat_type=chat_type,
        message_id=message_id,
        status_callback=status_callback,
    )

    async def tell(message: dict[str, Any], status: str, response: Any, error: str | None) -> None:
        request.retry_count = message["retry_count"]
        await request.notify_status(status, response, error)

    return await _chat.queue.enqueue(request.to_dict(), tell if status_callback else None)


async def get_queue_position(request_id: str) -> int:
    """1-based place in line, those being worked on counted; -1 when it is in no queue. O(log n)."""
    return await _chat.queue.get_position(request_id)


@documented(lambda: None)
async def get_user_request(user_id: str) -> QueuedRequest | None:
    """The user's first request in main. O(log n + that user's own requests), however many others wait."""
    engine = await _chat.queue._engine()
    id = await engine.transitions.first_of_user(str(user_id))
    return await _request(id) if id is not None else None


async def get_queue_length() -> int:
    """Requests in main and retry. O(number of workers)."""
    return await _chat.queue.get_queue_length()


async def get_next_request() -> QueuedRequest | None:
    """The next request to work on by hand, leased to this process; the same again until it is finished."""
    id = await _chat.queue.get_next_message()
    return await _request(id) if id is not None else None


async def update_request_status(request_id: str, status: str) -> bool:
    """Write the status field of a request; False when there is no such request."""
    return await _chat.queue.update_message(request_id, {"status": status})


async def remove_request(request_id: str) -> bool:
    """Take a request out and free its dedup slot."""
    return await _chat.queue.remove_message(request_id)


async def process_chat_request(request: QueuedRequest) -> Any:
    """Answer a request, report the status, and count it.

    Inside the processor a failure has the request tried again; only when it has finally failed are the user and the
    callback told. Driven by hand (`get_next_request`) a failure is told at once, and finishing is the caller's.

    Returns:
        The response; None where it failed.

    Raises:
        ConfigurationError: nothing says how requests are answered.
    """
    if _chat.handler is None and _chat.services is None:
        _chat.bind()
    execution = _chat.queue._execution_of(request.request_id)
    if execution is not None:
        return await _process_delivery(request, execution)
    return await _process_by_hand(request)


async def process_chat_api_queue() -> None:
    """Work on chat requests until cancelled, beside all other workers.

    Raises:
        ConfigurationError: nothing says how requests are answered.
    """
    await _chat.new_processor().run()


async def start_queue_processor() -> None:
    """Work on chat requests in the background. Starting twice is logged.

    ``CHAT_API_CONCURRENCY`` says how many at a time (1). Those of one user are worked on one after the other, over all
    processes, unless ``CHAT_API_ONE_AT_A_TIME`` is 0.

    Raises:
        ConfigurationError: nothing says how requests are answered.
    """
    if _chat.processor is not None and _chat.processor.running:
        logger.warning("the chat processor runs already")
        return
    _chat.processor = _chat.new_processor()
    _chat.processor.start()
    logger.info("the chat processor started")


async def stop_queue_processor() -> None:
    """Stop working; what is not done after 5 seconds is handed back to others. Stopping twice is logged."""
    if _chat.processor is None or not _chat.processor.running:
        logger.warning("no chat processor runs")
        return
    await _chat.processor.stop(_STOP_TIMEOUT)
    logger.info("the chat processor stopped")


async def try_acquire_chat_api_lock(timeout: float = 0) -> bool:
    """Take the lock that lets one worker of the old code run; False while others work."""
    return await _chat.queue.try_acquire_lock(GLOBAL_LOCK, OLD_WORKER, timeout)


async def release_chat_api_lock() -> bool:
    """Free the lock that `try_acquire_chat_api_lock` took."""
    return await _chat.queue.release_lock(GLOBAL_LOCK, OLD_WORKER)


# ---- inside


class _CallFailed(Exception):
    """The chat service answered that it could not."""


def _concurrency() -> int:
    value = os.environ.get("CHAT_API_CONCURRENCY") or "1"
    if not value.isdecimal() or int(value) < 1:
        raise ConfigurationError(f"CHAT_API_CONCURRENCY={value!r} is not a whole number above 0")
    return int(value)


def _in_order() -> bool:
    value = os.environ.get("CHAT_API_ONE_AT_A_TIME") or "1"
    if value not in ("0", "1"):
        raise ConfigurationError(f"CHAT_API_ONE_AT_A_TIME={value!r} is neither 0 nor 1")
    return value == "1"


async def _agree_on_order(transitions: Transitions, *, in_order: bool) -> str | None:
    """Each user's requests one after the other, as the one old worker did: the key that workers are to ask for. Other
    limits, which somebody set, stay.
    """
    limits = await transitions.limits()
    if in_order and limits.key in (None, _USER) and limits.concurrency_per_key in (None, 1):
        return _USER
    if not in_order and (limits.key, limits.concurrency_per_key) == (_USER, 1):
        await transitions.limit(replace(limits, concurrency_per_key=None))
    return None


async def _request(id: str) -> QueuedRequest | None:
    data = await _chat.queue.get_message(id)
    return _request_in(id, data) if data is not None else None


def _request_in(id: str, data: dict[str, Any]) -> QueuedRequest:
    return QueuedRequest.from_dict({**data, "request_id": id})  # a hash need not name its id


async def _process(id: str) -> None:
    execution = current.get()
    assert execution is not None, f"request {id} is worked on outside a delivery"
    await process_chat_request(_request_in(id, decode_values(execution.fields)))


async def _process_delivery(request: QueuedRequest, execution: Execution[Any]) -> Any:
    request.status = STATUS_PROCESSING
    answer = None if _chat.services is None else text(execution.fields.get(ANSWER))
    if answer is not None:
        return await _finish(request, execution, answer)
    limit = asyncio.timeout(HANDLER_TIMEOUT)
    try:
        async with limit:
            response = await _respond(request)
    except Exception as error:  # noqa: BLE001  # every failure has an outcome, which logs it
        await _fail(request, execution, error, timed_out=limit.expired())
        return None
    await _report_completed(request, response)
    await _react(request)
    await _keep_answer(request.request_id, response)
    return await _finish(request, execution, response)


async def _fail(request: QueuedRequest, execution: Execution[Any], error: Exception, *, timed_out: bool) -> None:
    outcome, words = failure(execution, error), str(error) or type(error).__name__
    if timed_out:
        words = f"the handler took longer than {HANDLER_TIMEOUT:g} s"
        outcome = Failed(execution.next_delay(), "timeout", words)
    elif isinstance(error, _CallFailed):  # in the service's own words
        outcome = msgspec.structs.replace(outcome, error=outcome.error.removeprefix(f"{_CallFailed.__name__}: "))
    if not isinstance(error, (Retry, Reject)):
        log_attempt(logger, execution.message, outcome.error)
    await in_its_loop(execution, execution.settle(outcome))
    if execution.settled == STATUS_ERROR:  # and only now: before, another attempt was to come
        await _apologise(request, _scrubbed(words, request))


async def _finish(request: QueuedRequest, execution: Execution[Any], response: Any) -> Any:
    await _send(request, response)
    if await in_its_loop(execution, execution.complete(response)):
        await _count_processed()
    return response


async def _process_by_hand(request: QueuedRequest) -> Any:
    try:
        response = await _respond(request)
    except Exception as error:  # noqa: BLE001  # whatever it is, the user is told
        words = _scrubbed(str(error) or type(error).__name__, request)
        logger.error("request %s failed: %s", request.request_id, words)  # noqa: TRY400  # a traceback shows secrets
        await _chat.queue._report(request.request_id, Status.ERROR, words.encode(errors="replace"))
        await request.notify_status(STATUS_ERROR, None, words)
        await _apologise(request, words)
        return None
    await _report_completed(request, response)
    await request.notify_status(STATUS_COMPLETED, response)
    await _react(request)
    try:
        await _send(request, response)
    except Exception as error:  # noqa: BLE001  # an answer was found, and reported
        log_error(logger, f"request {request.request_id} could not be answered", error, request.to_dict())
        return response
    await _count_processed()
    return response


async def _report_completed(request: QueuedRequest, response: Any) -> None:
    try:
        encoded = b"" if response is None else msgspec.json.encode(response)  # whole, however much of it is kept
    except (TypeError, ValueError, RecursionError):
        encoded = encoded_result(request.request_id, response)  # it says why there is none
    await _chat.queue._report(request.request_id, Status.COMPLETED, encoded)


async def _respond(request: QueuedRequest) -> Any:
    if _chat.services is None:
        assert _chat.handler is not None
        return await _chat.handler(request)
    success, response, error = await _chat.services.send_chat_message(request.message)
    if not success:
        raise _CallFailed(str(error or response or "the chat service gave no reason"))
    return response


async def _react(request: QueuedRequest) -> None:
    """Only the services leave that to us."""
    if _chat.services is None:
        return
    try:
        await _chat.services.react(request)
    except Exception as error:  # noqa: BLE001  # the answer matters more
        log_error(
            logger, f"the reaction to message {request.message_id} could not be updated", error, request.to_dict()
        )


@documented(lambda: None)
async def _keep_answer(id: str, response: Any) -> None:
    """From here on only the sending can fail: the work, which may have cost money, is not done again for that."""
    if _chat.services is None:
        return
    engine = await _chat.queue._engine()
    await engine.transitions.update(id, [ANSWER.encode(), str(response).encode(errors="replace")], b"")


async def _send(request: QueuedRequest, response: Any) -> None:
    """Only the services leave that to us, too; where the answer cannot be sent the request is not done."""
    if _chat.services is not None:
        await _chat.services.answer(request, str(response))


async def _apologise(request: QueuedRequest, error: str) -> None:
    if _chat.services is None:
        return
    try:
        await _chat.services.answer(request, f"Your request could not be answered: {error}")
    except Exception as failed:  # noqa: BLE001  # the request has ended all the same
        log_error(
            logger, f"the user could not be told that request {request.request_id} failed", failed, request.to_dict()
        )


def _scrubbed(words: str, request: QueuedRequest) -> str:
    """Without the bot's token: it is part of the platform's URL, and so of many an error's text."""
    return scrubbed(words, request.to_dict())


@documented(lambda: None)
async def _count_processed() -> None:
    engine = await _chat.queue._engine()
    await engine.transitions.count("processed_requests")
