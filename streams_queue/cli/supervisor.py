"""`streams-queue worker --processes N`: starts the processes, restarts what dies, ends with all of them."""

import asyncio
import logging
import signal
import time
from contextlib import suppress

import msgspec

from streams_queue.backoff import retry_delay
from streams_queue.cli.line import MARGIN, Order, Report
from streams_queue.cli.place import Command, Place
from streams_queue.cli.terminal import FAILED, MISUSED, UNREACHABLE, ending_signals
from streams_queue.endpoint import address_of, listen, serve

logger = logging.getLogger(__name__)

SOONEST = 0.5
"""Seconds until a process that died is started again; twice as long after each further death in a row."""

LATEST = 30.0
"""Seconds that it never takes longer."""

WELL = 60.0
"""Seconds at work after which earlier deaths are forgotten."""


_TOLD = {None, 0, FAILED, MISUSED, UNREACHABLE}
"""Exit codes of a process that has said why, where there is anything to say."""


class Supervisor:
    """Keeps so many processes at work.

    The first one goes ahead, and the others follow once it is at work: what is wrong for all is met and said once.
    """

    def __init__(self, processes: int, command: Command, *, burst: bool) -> None:
        self.places = [Place(number, command) for number in range(1, processes + 1)]
        self._burst = burst
        self._begun = asyncio.Event()
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Work until stopped, with burst until nothing is left to do now; returns the exit code."""
        for number in ending_signals():
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)
        first, *others = self.places
        keeping = [asyncio.create_task(self._keep(first))]
        begun = asyncio.create_task(self._begun.wait())
        await asyncio.wait([*keeping, begun], return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if self._begun.is_set():
            keeping += [asyncio.create_task(self._keep(place)) for place in others]
        await asyncio.gather(*keeping)
        return self._exit_code()

    def _exit_code(self) -> int:
        codes = {place.code for place in self.places if place.code}
        if not codes:
            return 0
        common = codes.pop()
        return FAILED if codes or common < 0 else common

    # ---- one process after the other

    async def _keep(self, place: Place) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            worked = await self._run(place)
            if self._is_last(place, worked):
                if place.code not in _TOLD and not self._stopping.is_set():
                    logger.error("%s %s before it was at work: no other starts", place.name, _how(place.code))
                return
            place.deaths = 1 if worked >= WELL else place.deaths + 1
            delay = min(LATEST, retry_delay(SOONEST, place.deaths))
            logger.error(
                "%s %s after %.1f s%s: another starts in %g s",
                place.name, _how(place.code), time.monotonic() - began,
                f", death {place.deaths} in a row" if place.deaths > 1 else "", delay,
            )  # fmt: skip
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def _run(self, place: Place) -> float:
        """A process from its start to its end; returns the seconds that it was at work."""
        try:
            reader = await place.start()
        except OSError as error:
            logger.error("process %d cannot be started: %s", place.number, error)  # noqa: TRY400
            place.code = FAILED
            return 0.0
        if self._stopping.is_set():
            self._end(place)
        hearing = asyncio.create_task(self._hear(place, reader))
        await place.ended()
        heard, _ = await asyncio.wait([hearing], timeout=1.0)  # the end may be seen before the last words
        hearing.cancel()
        place.report = None
        began = hearing.result() if heard else None
        return 0.0 if began is None else time.monotonic() - began

    async def _hear(self, place: Place, reader: asyncio.StreamReader) -> float | None:
        """When the process began to work; None where it ended before."""
        try:
            line = await reader.readline()
        except OSError:  # it ended with an order unread
            return None
        if not line:
            return None
        place.report = msgspec.json.decode(line, type=Report)
        logger.info("%s is at work", place.name)
        self._begun.set()
        return time.monotonic()

    def _is_last(self, place: Place, worked: float) -> bool:
        """Whether the process that ended has no successor."""
        if self._stopping.is_set():
            if not worked:  # what was sent to all may have cut off its start: it held nothing
                place.code = 0
            return True
        if self._burst and place.code == 0:
            self._begun.set()
            return True
        if not self._begun.is_set() or (self._burst and not worked):
            return True
        if all(other.code == MISUSED for other in self.places):
            logger.error("all processes end with exit code %d: no other is started", MISUSED)
            self._stopping.set()
            return True
        return False

    # ---- the end

    def _on_signal(self, number: int) -> None:
        if self._stopping.is_set():
            for place in self.places:
                place.tell(Order.HURRY)
                place.kill_after(MARGIN)
            return
        logger.info("%s: stopping all processes", signal.Signals(number).name)
        self._stopping.set()
        for place in self.places:
            self._end(place)

    def _end(self, place: Place) -> None:
        if not place.runs:
            place.code = 0  # the one that died has been told of, and this end is in order
            return
        place.tell(Order.STOP)
        place.kill_after((place.report.grace if place.report else 0.0) + MARGIN)


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"


async def supervise(processes: int, command: Command, *, burst: bool, host: str, port: int | None) -> int:
    """Run a supervisor, and with a port serve what its processes show meanwhile; returns the exit code.

    Raises:
        ConfigurationError: prometheus_client is not installed, or it is impossible to listen there.
    """
    supervisor = Supervisor(processes, command, burst=burst)
    if port is None:
        return await supervisor.run()
    from streams_queue.cli.overview import Overview  # noqa: PLC0415  (the extra may be absent)

    listening = listen(host, port)
    logger.info("health and metrics of all processes: http://%s", address_of(listening))
    serving = asyncio.create_task(serve(listening, Overview(supervisor.places).pages))
    try:
        return await supervisor.run()
    finally:
        serving.cancel()
        await asyncio.wait([serving])
