"""Handlers at work: each in a task, with a time that it may take, and the reasons for which it is cancelled."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from streams_queue import failpoints

Item = TypeVar("Item")
Answer = TypeVar("Answer")

CANCELLED_AGAIN_AFTER = 1.0
"""Seconds after which a handler that went on in spite of its cancellation is cancelled once more."""


class HandlerTask:
    """The task that a handler runs in, and the reasons for which it is cancelled."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        """Where it is to be finished, whichever loop the handler may run in another thread."""
        self.interrupted = False
        """The worker wants the handler to end: what it did not do by then is for another run."""
        self.too_slow = False
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def runs(self) -> bool:
        """Whether its handler is at work."""
        return self._task is not None

    def begin(self) -> asyncio.Task[Any]:
        """From here on the calling task, which it gives, can be interrupted."""
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        if self.interrupted:
            self._cancel()
        return task

    def end(self) -> None:
        """The handler is over: nothing cancels the task any more."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()

    def interrupt(self) -> None:
        """Cancel the handler, now or when it begins."""
        self.interrupted = True
        self._cancel()

    def time_out(self) -> None:
        """Cancel the handler: it took too long."""
        self.too_slow = True
        self._cancel()

    def _cancel(self) -> None:
        if self._task is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(CANCELLED_AGAIN_AFTER, self._cancel)
        self._task.cancel()


class Deadlines:
    """One timer for all handlers: each has as long as the others, so who began first is late first.

    Args:
        timeout: seconds that a handler may take.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._due: dict[HandlerTask, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, handler_task: HandlerTask) -> None:
        """Its handler begins now."""
        due = self._loop.time() + self.timeout
        self._due[handler_task] = due
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._look)

    def end(self, handler_task: HandlerTask) -> None:
        """Its handler has ended."""
        self._due.pop(handler_task, None)

    def close(self) -> None:
        """Nobody is late any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        while self._due:
            handler_task, due = next(iter(self._due.items()))
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self._look)
                return
            del self._due[handler_task]
            handler_task.time_out()


class Ended(Exception):  # a handler's end, not an error
    """What `supervised` raises for a handler that took too long, or that cancelled itself."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


async def supervised(
    handler_task: HandlerTask,
    handler: Callable[[Item], Awaitable[Answer]],
    given: Item,
    deadlines: Deadlines,
    ending: Callable[[], bool],
) -> Answer:
    """What the handler returns.

    The cancellation of an interrupted handler goes through, and so does that of a loop that is `ending`. One that the
    handler asked for itself is its failure, and ends with it.

    Raises:
        Ended: it took too long, or raised CancelledError itself.
        whatever the handler raises.
    """
    failpoints.hit("before_handler")
    task = handler_task.begin()
    deadlines.begin(handler_task)
    try:
        return await handler(given)
    except asyncio.CancelledError:
        if handler_task.interrupted or ending():
            raise
        if handler_task.too_slow:
            raise Ended("timeout", f"the handler took longer than {deadlines.timeout:g} s") from None
        raise Ended("error", "the handler raised CancelledError") from None
    finally:
        deadlines.end(handler_task)
        handler_task.end()
        if task.cancelling() and not ending():
            await _forget_cancellation(task)


async def _forget_cancellation(task: asyncio.Task[Any]) -> None:
    """One that has not come through yet must not end what follows the handler."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    while task.uncancel():
        pass
