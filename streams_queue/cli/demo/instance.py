"""One worker process of the demo: an application's instance that runs the documented processor.

``python -m streams_queue.cli.demo.instance PREFIX`` works until its stdin closes, and so never outlives the demo.
"""

import asyncio
import sys

from streams_queue.cli.demo import chat
from streams_queue.cli.terminal import LogLevel, log_to_stderr
from streams_queue_compat.chat_api_queue import start_queue_processor, stop_queue_processor


async def work() -> None:
    """Answer chat requests."""
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, closed.set)
    await start_queue_processor()
    await closed.wait()
    await stop_queue_processor()


if __name__ == "__main__":
    log_to_stderr(LogLevel.INFO)
    chat.set_up(sys.argv[1])
    asyncio.run(work())
