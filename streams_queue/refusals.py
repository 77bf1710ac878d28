"""The error of a message that a limit refuses. It names the limit and its value, and nothing that is in the message."""

import math
from collections.abc import Sequence

from streams_queue.answers import Refused
from streams_queue.errors import QueueFull, RateLimited, Rejected
from streams_queue.limits import value_in
from streams_queue.model import Receipt


def rejection(queue: str, refused: Refused, receipts: Sequence[Receipt | None] = ()) -> Rejected:
    """What to raise for it; `receipts` says what became of each message, where it came with others."""
    option = f"streams-queue limits set --{refused.limit.replace('_', '-')}"
    limit = f"{refused.limit}={value_in(refused.limit, refused.value)}"
    if refused.retry_after is None:
        return QueueFull(
            f"queue {queue!r} is full, its limit of unfinished messages is {limit}: try again when workers have "
            f"finished some, or raise the limit with {option}",
            None,
            tuple(receipts),
        )
    wait = math.ceil(refused.retry_after * 1000) / 1000
    return RateLimited(
        f"queue {queue!r} takes no more now, its limit is {limit}: try again in {wait:g} s, or raise the limit with "
        f"{option}",
        refused.retry_after,
        tuple(receipts),
    )
