"""How long a message waits before its next attempt."""

LONGEST = 7 * 86400.0
"""Seconds: no delay is longer, however often the message failed."""


def retry_delay(base: float, attempt: int) -> float:
    """The delay in seconds before retry number ``attempt`` (1 for the first): ``base * 2 ** (attempt - 1)``.

    The documented queue's rule; never more than ``LONGEST``.
    """
    return min(LONGEST, base * 2.0 ** min(attempt - 1, 64))
