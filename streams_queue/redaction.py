"""Secrets hidden before anything is shown: in a repr, a log, a terminal, a page."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET = re.compile(r"token|password|secret|api_key", re.IGNORECASE)


def is_secret(field: str) -> bool:
    """Whether a field of this name holds a secret (``*token*``, ``*password*``, ``*secret*``, ``*api_key*``)."""
    return _SECRET.search(field) is not None


def redacted(value: Any) -> Any:
    """The same value with every secret in a mapping, however deep, replaced by ``***``."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if is_secret(str(key)) else redacted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redacted(item) for item in value]
    return value
