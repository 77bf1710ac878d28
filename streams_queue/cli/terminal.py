"""What every command does with the terminal: one format for log lines, one for errors, nothing unprintable."""

import logging
import signal
import sys
from enum import StrEnum
from typing import NoReturn

import typer

from streams_queue.errors import (
    ConfigurationError,
    InvalidMessage,
    QueueUnavailable,
    Rejected,
    StreamsQueueError,
    UnsupportedServer,
)
from streams_queue.logs import JsonFormatter, LineFormatter
from streams_queue.redaction import printable

FAILED = 1
MISUSED = 2
UNREACHABLE = 3
REFUSED = 4


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a log record is written."""

    TEXT = "text"
    JSON = "json"


def log_to_stderr(level: LogLevel, format: LogFormat = LogFormat.TEXT, process: int | None = None) -> None:
    """Write log records to stderr, unless the application has said where they go; `process` is named in each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if format is LogFormat.JSON else LineFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def ending_signals() -> list[signal.Signals]:
    """The signals that ask a command to end: a closed terminal's, too, unless `nohup` or the like has it ignored."""
    asked = [signal.SIGTERM, signal.SIGINT]
    hangup = getattr(signal, "SIGHUP", None)  # not everywhere
    return asked if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN else [*asked, hangup]


def complain(text: str) -> None:
    """Print an error of one line."""
    typer.echo(f"error: {printable(text)}", err=True)


def fail(text: str, code: int = MISUSED) -> NoReturn:
    """End the command with an error of one line."""
    complain(text)
    raise typer.Exit(code)


def fail_by(error: StreamsQueueError) -> NoReturn:
    """End the command by the error, with the exit code that its kind has."""
    fail(str(error), code_of(error))


def code_of(error: StreamsQueueError) -> int:
    """The exit code that an error's kind has."""
    match error:
        case ConfigurationError() | UnsupportedServer() | InvalidMessage():
            return MISUSED
        case QueueUnavailable():
            return UNREACHABLE
        case Rejected():
            return REFUSED
        case _:
            return FAILED
