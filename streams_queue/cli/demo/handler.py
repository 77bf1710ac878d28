"""How the demo's workers answer a request: ``CHAT_API_HANDLER=streams_queue.cli.demo.handler:answer``."""

import asyncio
import os
import random
from pathlib import Path

from streams_queue.cli.demo.ledger import Ledger
from streams_queue.cli.demo.plan import Fate
from streams_queue.cli.demo.stage import Stage
from streams_queue.execution import current
from streams_queue_compat.chat_api_queue import QueuedRequest

_stage = Stage(Path(os.environ["STREAMS_QUEUE_DEMO"]))
_ledger = Ledger(_stage.ledger)
_plan = _stage.plan()


async def answer(request: QueuedRequest) -> str:
    """Think for a while, then answer, or fail as was decided for this request."""
    execution = current.get()
    assert execution is not None
    with _ledger.run(request.request_id, execution.lease.delivery):
        await asyncio.sleep(_plan.thinking * random.uniform(0.5, 1.5))
        match _plan.fate(request.user_id, request.message):
            case Fate.STUMBLES if request.retry_count == 0:
                raise TimeoutError("the chat service did not answer in time")
            case Fate.WAITS if not _stage.repaired:
                raise ConnectionError("the chat service is down")
            case Fate.HOPELESS:
                raise ValueError("the chat service refuses this request")
    return f"Answer to message {request.message_id}"
