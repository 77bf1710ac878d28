"""The documented chat queue, set up for the demo: under a prefix of its own, with short times."""

from streams_queue_compat import chat_api_queue

LEASE = 3.0
"""Seconds after which the requests of a killed worker go to another."""


def set_up(prefix: str) -> None:
    """Use this prefix in this process, and do not wait as long as one would in earnest."""
    queue = chat_api_queue._chat.queue = chat_api_queue._ChatQueue(prefix, chat_api_queue.QUEUE_ITEM_EXPIRY)
    queue.lock_expiry = LEASE
    queue.retry_delay_base = 0.5
    queue.max_retries = 2
