"""The queue against its model; `make chaos` has many more examples.

A failing sequence is printed as Python, with a line ``@reproduce_failure(...)`` to put above the machine; it is also
kept, and comes first in the next run.
"""

from __future__ import annotations

import pytest
from hypothesis.stateful import run_state_machine_as_test

from chaos.limited import Limited
from chaos.machine import Machine, settings


@pytest.mark.parametrize(("machine", "examples"), [(Machine, 30), (Limited, 15)])
def test_the_queue_is_as_its_model(server, machine, examples):
    machine.server = server
    run_state_machine_as_test(machine, settings=settings(examples))
