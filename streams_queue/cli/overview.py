"""What a supervisor shows of all its processes, on one port: a pod has one scrape, and one probe of each kind."""

import asyncio
import json
import logging
from collections.abc import Sequence
from http import HTTPStatus

from streams_queue.cli.place import Place
from streams_queue.endpoint import Answer, Request, as_json, fetch
from streams_queue.metrics import exposition_of_processes

logger = logging.getLogger(__name__)

WITHIN = 3.0
"""Seconds that a process has to answer; a prober gives up soon, too."""

_SUMS = ("slots", "busy")


class Overview:
    """The pages of the processes, each asked for its own on loopback."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self.pages = {"/metrics": self._metrics, "/load": self._load, "/live": self._live, "/ready": self._ready}

    async def _metrics(self, _: Request) -> Answer:
        answers = await self._asked("/metrics")
        pages = {
            number: answer.body if answer is not None and answer.ok else None for number, answer in answers.items()
        }
        starts = {place.number: place.starts for place in self._places}
        return Answer(HTTPStatus.OK, *exposition_of_processes(pages, starts))

    async def _load(self, _: Request) -> Answer:
        answers = [answer for answer in (await self._asked("/load")).values() if answer is not None]
        loads = [json.loads(answer.body) for answer in answers if answer.ok]
        if not loads:
            nobody = as_json({"error": "no process is at work"}, HTTPStatus.SERVICE_UNAVAILABLE)
            return answers[0] if answers else nobody
        sums = {name: sum(load[name] for load in loads) for name in _SUMS}
        return as_json(loads[0] | sums | {"saturation": sums["busy"] / sums["slots"]})

    async def _live(self, _: Request) -> Answer:
        at_work = {place.number for place in self._places if place.report is not None}
        answers = await self._asked("/live")
        return _verdict("live", {number: _is_ok(answers[number]) for number in answers if number in at_work})

    async def _ready(self, _: Request) -> Answer:
        return _verdict("ready", {number: _is_ok(answer) for number, answer in (await self._asked("/ready")).items()})

    async def _asked(self, path: str) -> dict[int, Answer | None]:
        answers = await asyncio.gather(*(self._ask(place, path) for place in self._places))
        return {place.number: answer for place, answer in zip(self._places, answers, strict=True)}

    async def _ask(self, place: Place, path: str) -> Answer | None:
        if place.report is None or place.report.port is None:
            return None
        try:
            return await fetch(place.report.port, path, WITHIN)
        except OSError as error:
            logger.debug("%s does not show %s: %s", place.name, path, error)
            return None


def _is_ok(answer: Answer | None) -> bool:
    return answer is not None and answer.ok


def _verdict(name: str, by_process: dict[int, bool]) -> Answer:
    verdict = all(by_process.values())
    status = HTTPStatus.OK if verdict else HTTPStatus.SERVICE_UNAVAILABLE
    return as_json({name: verdict, "processes": by_process}, status)
