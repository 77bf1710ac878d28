"""The commands that a script may run: what a user who runs it must be allowed."""

import re
from functools import cache

from streams_queue.scripts import Script

_FUNCTION = re.compile(r"^local function (\w+)\((?:[^\n]*\bend$|.*?^end$)", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?<!\binfo_about)\('([A-Z]{3,})'")  # also where a function of ours hands the name on


@cache
def commands_in(script: Script) -> frozenset[str]:
    """Those in its own lines, and in the functions that these name: includes bring more than is used."""
    text = re.sub(r"--.*", "", script.source)
    text = "\n".join(line.rstrip() for line in text.splitlines())
    functions = {match[1]: match[0] for match in _FUNCTION.finditer(text)}
    reached, unread = set[str](), [_FUNCTION.sub("", text)]
    found: set[str] = set()
    while unread:
        part = unread.pop()
        found.update(_COMMAND.findall(part))
        named = functions.keys() & set(re.findall(r"\w+", part)) - reached
        reached |= named
        unread += [functions[function] for function in named]
    return frozenset(found)
