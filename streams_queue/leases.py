"""Leases kept alive from a thread of their own, so that a blocked event loop does not lose its messages."""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from streams_queue.connection import Connection
from streams_queue.errors import StreamsQueueError
from streams_queue.keys import Keys
from streams_queue.model import Lease
from streams_queue.settings import Settings
from streams_queue.transitions import Transitions

logger = logging.getLogger(__name__)

PATIENCE = 10
"""Leases without a sign of the main loop after which renewing rests: what hangs for ever must not hold for ever."""


class LeaseKeeper:
    """Renews what one consumer holds every third of the lease, over a connection of its own.

    The thread shares nothing with the main loop but a locked table and the time of its last sign.

    Args:
        lease: seconds.
        lost: called in the main loop with each lease that is lost.
        renewed: called there whenever Redis has answered a renewal.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        consumer: str,
        lease: float,
        lost: Callable[[Lease], None],
        renewed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._consumer = consumer
        self._lease = lease
        self._lost = lost
        self._renewed = renewed
        self._table: set[Lease] = set()
        self._lock = threading.Lock()
        self._sign = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._main_thread = threading.get_ident()
        self._failing = False

    def start(self) -> None:
        """Begin to renew; call it in the main loop."""
        loop = asyncio.get_running_loop()
        self._main_thread = threading.get_ident()
        self._sign = time.monotonic()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(loop)), name="streams-queue leases", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Renew no more; returns at once."""
        self._stop.set()

    def hold(self, leases: Iterable[Lease]) -> None:
        """Renew these leases too."""
        with self._lock:
            self._table.update(leases)

    def drop(self, lease: Lease) -> None:
        """Renew it no more."""
        with self._lock:
            self._table.discard(lease)

    def sign(self) -> None:
        """The main loop is alive; where it was not for a while, that is said."""
        silence = self._silence()
        self._sign = time.monotonic()
        if silence > self._suspicious:
            logger.warning("the event loop of worker %s was blocked for %.1f s", self._consumer, silence)

    def _silence(self) -> float:
        return time.monotonic() - self._sign

    @property
    def _suspicious(self) -> float:
        return 2 * self._lease / 3  # signs come every third

    async def _run(self, main: asyncio.AbstractEventLoop) -> None:
        # One call that hangs must not take the time of the next ones: there are three in a lease.
        timeout = min(self._settings.timeout, self._lease / 3)
        connection = Connection(msgspec.structs.replace(self._settings, timeout=timeout))
        transitions = Transitions(connection, self._keys)
        pause = self._lease / 3
        said = False
        try:
            while not await asyncio.to_thread(self._stop.wait, pause):
                silence = self._silence()
                if silence > self._suspicious and not said:
                    self._say_where_blocked(main, silence)
                said = silence > self._suspicious
                if silence > PATIENCE * self._lease:
                    continue
                pause = self._lease / 3 if await self._renew(connection, transitions, main) else self._lease / 10
        finally:
            await connection.close()

    def _say_where_blocked(self, main: asyncio.AbstractEventLoop, silence: float) -> None:
        task = asyncio.current_task(main)
        by = task.get_name() if task is not None else "no task"
        frame = sys._current_frames().get(self._main_thread)
        place = f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})" if frame else "its thread"
        logger.warning(
            "the event loop of worker %s is blocked for %.1f s so far by %s, in %s; leases are renewed for %g s in all",
            self._consumer, silence, by, place, PATIENCE * self._lease,
        )  # fmt: skip

    async def _renew(self, connection: Connection, transitions: Transitions, main: asyncio.AbstractEventLoop) -> bool:
        with self._lock:
            held = list(self._table)
        if not held:
            return True
        try:
            await connection.open()
            answers = await transitions.renew(self._consumer, held, lock=self._lease)
        except Exception as error:  # a thread that ended would let go of everything, and nobody would see
            if not self._failing:
                expected = isinstance(error, StreamsQueueError)
                logger.warning(
                    "leases of %s cannot be renewed at present: %s", transitions.where, error,
                    exc_info=None if expected else error,
                )  # fmt: skip
            self._failing = True
            return False
        self._failing = False
        with suppress(RuntimeError):  # the main loop was closed meanwhile
            main.call_soon_threadsafe(self._renewed)
            for lease, still_held in zip(held, answers, strict=True):
                if not still_held:
                    self.drop(lease)
                    main.call_soon_threadsafe(self._lost, lease)
        return True
