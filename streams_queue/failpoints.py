"""Places in the code where a test can have a worker die, switched by the environment; without it, nothing.

``STREAMS_QUEUE_FAILPOINTS=before_finish:kill,after_read:kill@0.1`` kills the process at each `before_finish`, and with
a probability of a tenth at each `after_read`. Each place is one call of `hit`, which does nothing when off.
"""

import os
import random
import signal
from collections.abc import Mapping

VARIABLE = "STREAMS_QUEUE_FAILPOINTS"

NAMES = (
    "after_read",
    "before_handler",
    "mid_handler",
    "before_finish",
    "after_finish",
    "mid_sweep",
    "mid_promote",
    "mid_reshard",
)
"""`mid_handler` is for a test's handler to hit, the others stand in the engine."""

_ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def _nothing(name: str) -> None:
    """The failpoints are off."""


class Armed:
    """The failpoints that are on: what `hit` is then.

    Raises:
        ValueError: the text names an unknown place or action, or a bad probability.
    """

    def __init__(self, text: str) -> None:
        self._armed = dict(_parsed(part) for part in text.split(","))

    def __call__(self, name: str) -> None:
        """Do what was asked for at this place."""
        action, probability = self._armed.get(name, (signal.SIGKILL, 0.0))
        if random.random() < probability:
            os.kill(os.getpid(), action)


def _parsed(part: str) -> tuple[str, tuple[signal.Signals, float]]:
    name, _, order = part.strip().partition(":")
    action, _, probability = order.partition("@")
    if name not in NAMES or action not in _ACTIONS:
        raise ValueError(f"{VARIABLE}: {part!r} is not PLACE:kill or PLACE:stop, with @PROBABILITY or without")
    return name, (_ACTIONS[action], float(probability or 1.0))


def switched(environ: Mapping[str, str]) -> "Armed | None":
    """The failpoints that the environment switches on, if any."""
    text = environ.get(VARIABLE)
    return Armed(text) if text else None


hit = switched(os.environ) or _nothing
