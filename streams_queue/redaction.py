"""Secrets hidden, and what could steer its reader escaped, before anything is shown: in a log, a terminal, a page."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, quote_plus

HIDDEN = "***"
_SECRET = re.compile(r"token|password|secret|api[_-]?key", re.IGNORECASE)


def is_secret(field: str) -> bool:
    """Whether a field of this name holds a secret.

    Names like ``*token*``, ``*password*``, ``*secret*`` and ``*api_key*``, which may be spelt ``apiKey``, too.
    """
    return _SECRET.search(field) is not None


def redacted(value: Any) -> Any:
    """The same value with every secret in a mapping, however deep, replaced by ``***``."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if is_secret(str(key)) else redacted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redacted(item) for item in value]
    return value


def scrubbed(words: str, values: Mapping[str, Any]) -> str:
    """The text without the secrets among the values, however deep, as they are or escaped as in a repr, in JSON or in
    an address.

    Those of less than four characters stay: they would be found in every other word.
    """
    return scrubber(values)(words)


def scrubber(values: Any) -> Callable[[str], str]:
    """`scrubbed` for many texts: the secrets are looked for once."""
    return partial(_without, _forms_in(values))


def cleared(value: Any, values: Any) -> Any:
    """`redacted`, and all other text in the value without the secrets among the values, as by `scrubbed`."""
    return _cleared(redacted(value), _forms_in(values))


def printable(text: str) -> str:
    """The text with control characters, bidi overrides and the like escaped: it cannot steer a terminal or the eye."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )


def _cleared(value: Any, forms: list[str]) -> Any:
    match value:
        case Mapping():
            return {_cleared(key, forms): _cleared(item, forms) for key, item in value.items()}
        case list():
            return [_cleared(item, forms) for item in value]
        case str():
            return _without(forms, value)
        case bytes():
            return _without(forms, value.decode(errors="backslashreplace"))
        case int() | float() if str(value) in forms:
            return HIDDEN
    return value


def _without(forms: list[str], words: str) -> str:
    for form in forms:
        words = words.replace(form, HIDDEN)
    return words


def _forms_in(values: Any) -> list[str]:
    forms = {form for secret in _secrets_in(values) for form in _forms_of(secret) if len(form) > 3}
    return sorted(forms, key=len, reverse=True)


def _secrets_in(values: Any) -> Iterator[Any]:
    waiting = [(values, False)]  # no recursion: a payload may be nested deeper than Python's stack
    while waiting:
        value, is_one = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(item, is_one or is_secret(str(key))) for key, item in value.items()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += [(item, is_one) for item in value]
        elif is_one and value is not None and not isinstance(value, bool):
            yield value
        elif isinstance(value, bytes):
            waiting.append((value.decode(errors="replace"), False))
        elif isinstance(value, str) and value.lstrip().startswith(("{", "[", '"')):  # JSON within the text
            with contextlib.suppress(ValueError, RecursionError):
                waiting.append((json.loads(value), False))


def _forms_of(secret: Any) -> tuple[str, ...]:
    if isinstance(secret, bytes):
        return secret.decode(errors="replace"), repr(secret)[2:-1]
    text = str(secret)
    raw = text.encode(errors="surrogatepass")
    return (
        text, repr(text)[1:-1], ascii(text)[1:-1], json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1],
        quote(raw), quote(raw, safe=""), quote_plus(raw),
    )  # fmt: skip
