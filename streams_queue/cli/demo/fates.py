"""Which requests fail in the demo, and how: decided before the first is sent, read by every worker."""

from collections.abc import Sequence
from enum import StrEnum

from streams_queue.cli.demo.messages import ChatMessage


class Fate(StrEnum):
    """What goes wrong with a request."""

    STUMBLES = "stumbles"
    """Its first attempt fails."""
    WAITS = "waits"
    """It fails until the back end behind it is repaired: a dead letter that a requeue saves."""
    HOPELESS = "hopeless"
    """It always fails."""


Fates = dict[str, Fate]
"""By what makes a request: its user and text."""


def key(user_id: object, message: str) -> str:
    """What the fates are found by."""
    return f"{user_id}:{message}"


def draw(messages: Sequence[ChatMessage]) -> Fates:
    """A tenth stumbles, one in forty waits, one in a hundred is hopeless."""
    fates: Fates = {}
    for number, message in enumerate(messages):
        if number % 10 == 3:
            fates[key(message.user_id, message.message)] = Fate.STUMBLES
        if number % 40 == 7:
            fates[key(message.user_id, message.message)] = Fate.WAITS
        if number % 100 == 58:
            fates[key(message.user_id, message.message)] = Fate.HOPELESS
    return fates
