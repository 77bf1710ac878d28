"""What the steps of a migration tell each other, and whoever runs them."""

from collections.abc import Callable

import msgspec

Progress = Callable[[str, int, int], None]
"""Called with the name of the step, how many messages it has looked at, and how many there are to look at."""

QUEUES = ("main", "retry", "scheduled", "dlq")
"""The sets that messages stand in; an id that stands in several belongs to the first of them."""


class Finding(msgspec.Struct, frozen=True):
    """Something that whoever runs the migration should know before it writes."""

    name: str
    refuses: bool
    """Going on could do harm: it goes on only where it is told to."""
    what: str
    remedy: str


class Census(msgspec.Struct, kw_only=True):
    """What stands in one of the queue's sets, counted.

    ``found`` has the number of ids for each peculiarity:

    - ``bodiless``: no body, it ran out or was never there; ``damaged``: something that is no body stands in its place
    - ``ends_soon``: the body runs out within five minutes; ``undecodable``: a name or value is not UTF-8
    - ``two_places``: it stands in another set as well; ``no_time``: its score is no time in epoch seconds
    - of main only: ``no_entry``: no worker will be given it so far; ``left_in_work``: among those, its status is
      ``processing``; ``out_of_order``: its entry comes before that of a message with a lower score; ``locked``:
      somebody who is no worker of ours holds its lock
    """

    queue: str
    ids: int = 0
    found: dict[str, int] = {}
    examples: dict[str, list[str]] = {}
    """A few ids for each."""

    def note(self, name: str, id: str, samples: int) -> None:
        """One more of them, an example as long as there are fewer than `samples`."""
        self.found[name] = self.found.get(name, 0) + 1
        kept = self.examples.setdefault(name, [])
        if len(kept) < samples:
            kept.append(id)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a migration would meet; nothing was written."""

    prefix: str
    censuses: list[Census]
    findings: list[Finding]
    migrated_at: float | None
    """Epoch seconds of an earlier migration, if there was one."""
    bytes_needed: int
    """Memory that the streams and new fields will take, estimated."""

    @property
    def refusals(self) -> list[Finding]:
        """Why it would not be carried out."""
        return [finding for finding in self.findings if finding.refuses]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that must hold, and whether it does."""

    name: str
    what: str
    violations: int
    examples: list[str] = []
    remedy: str = ""
    fatal: bool = True
    """False: worth knowing, and no fault."""

    @property
    def holds(self) -> bool:
        """Whether there is nothing against it."""
        return self.violations == 0


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the whole queue found."""

    prefix: str
    ids: dict[str, int]
    """How many stand in each set."""
    checks: list[Check]

    @property
    def clean(self) -> bool:
        """Whether all holds that must."""
        return all(check.holds or not check.fatal for check in self.checks)


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What a migration did."""

    prefix: str
    before: dict[str, int]
    """How many ids stood in each set at the beginning."""
    looked_at: int
    entered: int
    """Messages of main that were given an entry in a stream."""
    ordered: int
    """Messages whose entry was put where main has them."""
    retimed: int
    """Scores ahead of the clock that were set to now."""
    kept: int
    """Bodies of retries and dead letters that had their life lengthened."""
    left: int
    """Second places of ids that stood in two sets."""
    dropped: int
    """Entries that no message went by."""
    set_aside: dict[str, int]
    """Ids without a body that are on ``P:lost`` and in the report now, by the set they stood in."""
    seconds: float
    verified: Verified

    @property
    def changed(self) -> bool:
        """Whether there was anything to do."""
        return any((self.entered, self.ordered, self.retimed, self.kept, self.left, self.dropped, self.set_aside))


class RolledBack(msgspec.Struct, frozen=True, kw_only=True):
    """What going back did."""

    prefix: str
    messages: int
    prioritised: int
    """The old code works on them in order of arrival."""
    scheduled: int
    """They wait as retries now: the old code looks at those only when main is empty."""
    escaped: int
    """They have payload keys that the old code sees as ``data:<key>``."""
    typed: int
    """Their values had types, which are lost: they are read by the old rules from now on."""
