"""The directory in which the demo's processes find what they share, outside Redis."""

from pathlib import Path

import msgspec

from streams_queue.cli.demo.fates import Fates


class Stage:
    """The ledger, the fates, and whether the back end is repaired."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = directory / "ledger.jsonl"
        self._fates = directory / "fates.json"
        self._repaired = directory / "repaired"

    def set(self, fates: Fates) -> None:
        """Decide, before any worker starts."""
        self._fates.write_bytes(msgspec.json.encode(fates))

    def fates(self) -> Fates:
        """What was decided."""
        return msgspec.json.decode(self._fates.read_bytes(), type=Fates)

    @property
    def repaired(self) -> bool:
        """Whether the back end behind the waiting ones works again."""
        return self._repaired.exists()

    def repair(self) -> None:
        """Have it work again."""
        self._repaired.touch()
