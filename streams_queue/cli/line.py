"""The line between a supervisor and one of its processes: a socket that each inherits one end of.

    supervisor ----- stop, hurry -----> process        its end says that the supervisor has gone
    supervisor <---- grace, port ------ process        once it is at work; its end that the process has

Orders go this way and not by signals, which others send, too: a terminal or an init system sends SIGTERM to every
process of a service, and one that the supervisor passed on would be a second one.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum

import msgspec

MARGIN = 5.0
"""Seconds above its grace period that a process may take to end: to hand back, to say farewell, to end threads."""


class Order(StrEnum):
    """What a process is told."""

    STOP = "stop"
    HURRY = "hurry"


class Report(msgspec.Struct, frozen=True):
    """What a process says of itself once it is at work."""

    grace: float
    """Seconds that it lets handlers finish."""
    port: int | None
    """Where it serves its health and metrics, on loopback."""


class Line:
    """The process's end. A thread listens, so that a blocked event loop does not outlive the supervisor."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)  # what the application starts does not keep the line open
        self._grace = 0.0
        self._obey: Callable[[Order], None] | None = None
        threading.Thread(target=self._listen, name="streams-queue line", daemon=True).start()

    def attach(self, obey: Callable[[Order], None]) -> None:
        """Pass orders on, in the line's thread. Until then any order ends the process: it holds nothing yet."""
        self._obey = obey

    def report(self, report: Report) -> None:
        """Tell the supervisor that the process is at work."""
        self._grace = report.grace
        with suppress(OSError):  # it has gone, and the thread knows
            self._socket.sendall(msgspec.json.encode(report) + b"\n")

    def _listen(self) -> None:
        with suppress(OSError), self._socket.makefile() as orders:
            for order in orders:
                self._take(Order(order.strip()))
        self._take(Order.STOP)
        time.sleep(self._grace + MARGIN)
        os._exit(1)

    def _take(self, order: Order) -> None:
        if self._obey is None:
            os._exit(0)
        self._obey(order)
