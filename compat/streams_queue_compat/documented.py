"""How documented methods end: no error leaves them."""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, cast

from streams_queue.errors import Rejected, StreamsQueueError
from streams_queue.execution import Execution
from streams_queue_compat.logs import MANAGER

logger = logging.getLogger(MANAGER)

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def documented(
    otherwise: Callable[[], Any],
) -> Callable[[Callable[Arguments, Awaitable[Answer]]], Callable[Arguments, Coroutine[Any, Any, Answer]]]:
    """Decorator: no error leaves the coroutine. It is logged with its cause, and the documented "no" returned."""

    def decorate(method: Callable[Arguments, Awaitable[Answer]]) -> Callable[Arguments, Coroutine[Any, Any, Answer]]:
        name = method.__qualname__.rpartition(".")[2]

        @functools.wraps(method)
        async def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
            try:
                answer = await method(*args, **kwargs)
            except Rejected as error:
                logger.warning("%s: %s", name, error)
                return cast(Answer, otherwise())
            except StreamsQueueError as error:
                logger.error("%s: %s%s", name, error, _cause(error))  # noqa: TRY400  # says more than a traceback
                return cast(Answer, otherwise())
            except Exception:
                logger.exception("%s failed", name)
                return cast(Answer, otherwise())
            # Of what a call was given only an id is shown, of its answer no more than that there is one.
            subject = next((argument for argument in args[:2] if isinstance(argument, str)), "...")
            logger.debug(
                "%s(%s) -> %s", name, subject, answer if isinstance(answer, str | int) else type(answer).__name__
            )
            return answer

        return call

    return decorate


async def in_its_loop(execution: Execution[Any], call: Coroutine[Any, Any, bool]) -> bool:
    """Finish a delivery where its worker runs: a process function may have a loop of its own, in another thread."""
    if asyncio.get_running_loop() is execution.loop:
        return await call
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, execution.loop))


def _cause(error: StreamsQueueError) -> str:
    cause = error.__cause__  # its repr may hold the payload
    return "" if cause is None else f" (cause: {type(cause).__name__}: {cause})"
