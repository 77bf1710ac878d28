"""What a migration leaves in files: its report, and the ids that it set aside."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
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
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", prefix)
        self.path = directory / f"streams-queue-migration-{name}-{stamp}.json"
        self.set_aside_path = self.path.with_suffix(".set-aside.jsonl")
        with self._writing():
            self.path.touch()
            self.path.unlink()

    def set_aside(self, id: str, queue: str) -> None:
        """Note an id that has no body, and the set that it stood in."""
        with self._writing(), self.set_aside_path.open("a") as file:
            file.write(json.dumps({"id": id, "queue": queue}) + "\n")

    def write(self, result: Any) -> None:
        """Note what was done."""
        with self._writing():
            self.path.write_text(json.dumps(msgspec.to_builtins(result), indent=2) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigurationError(f"the report cannot be written to {self.path}: {error.strerror}") from error
