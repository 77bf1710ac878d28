"""Secrets hidden before anything is shown: in a repr, a log, a terminal, a page."""

import json
import re
from collections.abc import Iterator, Mapping
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


def scrubbed(words: str, values: Mapping[str, Any]) -> str:
    """The text without the secrets among the values, however deep, as they are or escaped as in a repr or in JSON.

    Those of less than four characters stay: they would be found in every other word.
    """
    forms = {form for secret in _secrets_in(values) for form in _forms_of(secret) if len(form) > 3}
    for form in sorted(forms, key=len, reverse=True):
        words = words.replace(form, HIDDEN)
    return words


def _secrets_in(value: Any, *, within: bool = False) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets_in(item, within=within or is_secret(str(key)))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _secrets_in(item, within=within)
    elif within and value is not None and not isinstance(value, bool):
        yield value


def _forms_of(secret: Any) -> tuple[str, ...]:
    if isinstance(secret, bytes):
        return secret.decode(errors="replace"), repr(secret)[2:-1]
    text = str(secret)
    return text, repr(text)[1:-1], ascii(text)[1:-1], json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]
