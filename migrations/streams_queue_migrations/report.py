"""What a migration leaves in files: its report, and the ids that it set aside."""

import re
import time
from pathlib import Path
from typing import Any

import msgspec

from streams_queue.errors import ConfigurationError


class Report:
    """A migration's report, ``streams-queue-migration-<prefix>-<time>.json``.

    Ids that are set aside stand, a JSON object a line, in a file beside it that ends in ``.set-aside.jsonl``; each is
    there before the next page is looked at, so that a migration that is killed leaves what it did.

    Args:
        directory: where the files go.
        prefix: of the queue.

    Raises:
        ConfigurationError: nothing can be written there.
    """

    def __init__(self, directory: Path, prefix: str) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", prefix)
        self.path = directory / f"streams-queue-migration-{name}-{stamp}.json"
        self.set_aside_path = self.path.with_suffix(".set-aside.jsonl")
        try:
            self.path.touch()
        except OSError as error:
            raise ConfigurationError(f"the report cannot be written to {self.path}: {error.strerror}") from error

    def set_aside(self, id: str, queue: str) -> None:
        """Note an id that has no body, and the set that it stood in."""
        with self.set_aside_path.open("ab") as file:
            file.write(msgspec.json.encode({"id": _printable(id), "queue": queue}) + b"\n")

    def write(self, result: Any) -> None:
        """Note what was done."""
        self.path.write_bytes(msgspec.json.format(msgspec.json.encode(result, enc_hook=str), indent=2) + b"\n")


def _printable(id: str) -> str:
    """An id that is in no encoding, with what cannot be written escaped."""
    return id.encode(errors="surrogateescape").decode(errors="backslashreplace")
