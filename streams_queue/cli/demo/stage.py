"""The directory in which the demo's processes find what they share, outside Redis."""

from pathlib import Path

import msgspec

from streams_queue.cli.demo.plan import Plan


class Stage:
    """The ledger, the plan, and whether the back end is repaired."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = directory / "ledger.jsonl"
        self._plan = directory / "plan.json"
        self._repaired = directory / "repaired"

    def set(self, plan: Plan) -> None:
        """Put the plan there, before any worker starts."""
        self._plan.write_bytes(msgspec.json.encode(plan))

    def plan(self) -> Plan:
        """What was decided."""
        return msgspec.json.decode(self._plan.read_bytes(), type=Plan)

    @property
    def repaired(self) -> bool:
        """Whether the back end behind the waiting ones works again."""
        return self._repaired.exists()

    def repair(self) -> None:
        """Have it work again."""
        self._repaired.touch()
