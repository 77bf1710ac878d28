"""Every fault at smoke size; `make chaos` is the full one."""

from __future__ import annotations

import pytest

import servers
from chaos import scenario
from chaos.faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_fault(fault, request):
    server = request.config.getoption("--server") or servers.DEFAULT
    if server == "testcontainers":
        pytest.skip("a container's process is not ours to kill")
    row = await scenario.run(fault, server, full=False)
    assert not row.broken, f"{fault.what}: " + "; ".join(row.broken)
    assert row.runs and not row.lost
