"""What is logged of errors: without secrets."""

import logging
import traceback
from collections.abc import Mapping
from typing import Any

from streams_queue.model import Message
from streams_queue.redaction import scrubbed

MANAGER = "bot_logic.services.redis_queue_manager"
"""The documented name of the manager's logger."""


def log_error(logger: logging.Logger, what: str, error: BaseException, values: Mapping[str, Any]) -> None:
    """Log an error and its traceback, without the secrets among the values of its message."""
    logger.error("%s\n%s", what, scrubbed("".join(traceback.format_exception(error)), values))


def log_attempt(logger: logging.Logger, message: Message[Any], words: str) -> None:
    """Log in one line that an attempt at a message failed; its secrets are to be left out already."""
    logger.warning("message %s failed in attempt %d: %s", message.id, message.attempts, " ".join(words.split()))
