"""Moving a queue of the older, sorted-set kind in, and back out: plan, apply, verify, roll back.

Every step may be killed at any moment and run again; it then ends as if nothing had happened. Memory does not grow with
the queue: everything is read and written in pages. `docs/migrating.md` is the guide.
"""

from streams_queue_migrations.applying import apply
from streams_queue_migrations.discovery import discover
from streams_queue_migrations.model import Applied, Census, Check, Finding, Plan, Progress, RolledBack, Verified
from streams_queue_migrations.planning import plan
from streams_queue_migrations.resharding import Resharded, ReshardPlan, plan_reshard, reshard
from streams_queue_migrations.rollback import roll_back
from streams_queue_migrations.verifying import verify

__all__ = [
    "Applied",
    "Census",
    "Check",
    "Finding",
    "Plan",
    "Progress",
    "ReshardPlan",
    "Resharded",
    "RolledBack",
    "Verified",
    "apply",
    "discover",
    "plan",
    "plan_reshard",
    "reshard",
    "roll_back",
    "verify",
]
