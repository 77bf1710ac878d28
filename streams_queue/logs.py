"""The log: a line at the start and the end of each message, and records as lines that no text can forge.

Messages have a logger of their own, ``streams_queue.messages``. Starts and completions are DEBUG, since a busy worker
has thousands of them a second; an end of any other kind is INFO.
"""

import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from streams_queue.observation import Run
from streams_queue.redaction import printable
from streams_queue.shown import data_of

logger = logging.getLogger("streams_queue.messages")

PAYLOAD_LIMIT = 4096
"""Characters of a payload's JSON that a line shows."""


class MessageLog:
    """Logs what happens to the messages of one worker: an `Observer`. Costs nothing while the level is off.

    Each record carries its facts in ``record.streams_queue``, a dict, for formatters such as `JsonFormatter`.
    """

    def __init__(self) -> None:
        self.payload = False
        """Whether lines show the payload, its secrets hidden."""

    def wants(self) -> bool:
        """Whether any of its lines would be written."""
        return logger.isEnabledFor(logging.INFO)

    def started(self, runs: Sequence[Run]) -> None:
        """A line at DEBUG for each."""
        if not logger.isEnabledFor(logging.DEBUG):
            return
        for run in runs:
            facts = self._facts(run, "started")
            self._write(logging.DEBUG, "message %(id)s started: attempt %(attempt)d, waited %(wait).3f s", facts)

    def ended(self, runs: Sequence[Run], kept: None) -> None:  # noqa: ARG002
        """A line for each, at DEBUG where the message is completed, at INFO otherwise."""
        for run in runs:
            self._write_end(run)

    def _write_end(self, run: Run) -> None:
        level = logging.DEBUG if run.result == "completed" else logging.INFO
        if not logger.isEnabledFor(level):
            return
        facts = self._facts(run, run.result) | {"run": round(run.took, 6)}
        words = "message %(id)s %(outcome)s: attempt %(attempt)d, waited %(wait).3f s, ran %(run).3f s"
        if run.reason:
            facts |= {"reason": run.reason, "error": printable(run.error)}
            words += ", %(reason)s: %(error)s"
        self._write(level, words, facts)

    def _facts(self, run: Run, outcome: str) -> dict[str, Any]:
        message = run.message
        facts = {
            "queue": run.queue, "id": printable(message.id), "attempt": message.attempts,
            "wait": round(run.wait, 6), "outcome": outcome,
        }  # fmt: skip
        return facts | {"payload": _shown(data_of(message))} if self.payload else facts

    def _write(self, level: int, words: str, facts: dict[str, Any]) -> None:
        if "payload" in facts:
            words += ", payload %(payload)s"
        logger.log(level, words, facts, extra={"streams_queue": facts})


def _shown(data: dict[str, Any]) -> str:
    text = json.dumps(data, default=str)
    return text if len(text) <= PAYLOAD_LIMIT else text[: PAYLOAD_LIMIT - 1] + "…"


class LineFormatter(logging.Formatter):
    """One line a record; what follows a line break (a traceback) is indented, so that no text can pose as a record.

    Args:
        process: the number of this process among several, for every line.
    """

    def __init__(self, process: int | None = None) -> None:
        named = "" if process is None else f"[{process}] "
        super().__init__(f"%(asctime)s.%(msecs)03d %(levelname)-7s {named}%(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The record's text, control characters escaped."""
        return "\n    ".join(printable(line) for line in super().format(record).split("\n"))


class JsonFormatter(logging.Formatter):
    """A JSON object a record, in one line of ASCII: whatever a text holds is escaped.

    ``time`` is UTC; a record about a message has its facts beside ``message``.

    Args:
        process: the number of this process among several, for every record.
    """

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        facts = {
            "time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname, "logger": record.name,
            "message": record.getMessage(), **self._process, **getattr(record, "streams_queue", {}),
        }  # fmt: skip
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            facts["stack"] = record.stack_info
        return json.dumps(facts, default=str)
