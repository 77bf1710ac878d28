"""What happens to whom in the demo: decided before the first request is sent, read by every worker."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from streams_queue.cli.demo.messages import ChatMessage

THINKING = 0.4
"""Seconds that an answer takes on average; less where there are so many that it would take all day."""

_ALL_THINKING = 120.0


class Fate(StrEnum):
    """What goes wrong with a request."""

    STUMBLES = "stumbles"
    """Its first attempt fails."""
    WAITS = "waits"
    """It fails until the back end behind it is repaired: a dead letter that a requeue saves."""
    HOPELESS = "hopeless"
    """It always fails."""


class Plan(msgspec.Struct):
    """The fates of those with whom something goes wrong, by user and text, and how long an answer takes."""

    fates: dict[str, Fate]
    thinking: float

    def fate(self, user_id: object, message: str) -> Fate | None:
        """What goes wrong with this request, if anything."""
        return self.fates.get(f"{user_id}:{message}")


def draw(messages: Sequence[ChatMessage]) -> Plan:
    """A tenth stumbles, one in forty waits, one in a hundred is hopeless."""
    fates: dict[str, Fate] = {}
    for number, message in enumerate(messages):
        key = f"{message.user_id}:{message.message}"
        if number % 10 == 3:
            fates[key] = Fate.STUMBLES
        if number % 40 == 7:
            fates[key] = Fate.WAITS
        if number % 100 == 58:
            fates[key] = Fate.HOPELESS
    return Plan(fates, min(THINKING, _ALL_THINKING / len(messages)))
