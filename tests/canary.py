"""Words that stand for secrets in tests, and the search for them in whatever is put out, in any of their forms."""

from __future__ import annotations

import base64
import re
from urllib.parse import quote, quote_plus

CANARY = "canary-0123456789"
ODD_CANARY = "canary 0123+456/789"
"""One that is quoted where it stands in an address."""


def forms_of(word: str) -> set[str]:
    """The word as it is, quoted as in an address, and in base64 wherever in a text it may have stood."""
    raw = word.encode()
    found = {word, quote(word), quote(word, safe=""), quote_plus(word)}
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + raw).decode()
        # The signs at both ends are made of other bytes, too.
        inner = encoded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        found |= {inner, inner.translate(str.maketrans("+/", "-_"))}
    return found


_SEARCHED = re.compile("|".join(re.escape(form) for word in (CANARY, ODD_CANARY) for form in sorted(forms_of(word))))


def found_in(text: str | bytes) -> str | None:
    """Where a canary stands in a text, with some of what is around it; None where none does."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    found = _SEARCHED.search(text)
    return None if found is None else text[max(0, found.start() - 200) : found.end() + 50]


def check(text: str | bytes, what: object = "the output") -> None:
    """Fail where a canary stands in a text."""
    found = found_in(text)
    assert found is None, f"a secret stands in {what}: ... {found} ..."
