"""What the doctor says: one verdict a check."""

from enum import StrEnum

import msgspec


class Verdict(StrEnum):
    """How it stands. A danger loses messages or stops the queue; a warning may; unknown is what could not be seen."""

    OK = "ok"
    WARNING = "warning"
    DANGER = "danger"
    UNKNOWN = "unknown"


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at: the verdict, its reason, and what to type, where something is to be mended.

    `queue` is None for what concerns the server.
    """

    check: str
    verdict: Verdict
    reason: str
    remedy: str = ""
    queue: str | None = None
