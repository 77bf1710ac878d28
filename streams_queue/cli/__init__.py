"""The command line: `streams-queue`. Nothing else in the package needs what it needs."""

import sys


def main() -> None:
    """Run the command that the arguments name."""
    try:
        from streams_queue.cli.app import app  # noqa: PLC0415  (the extra may be absent)
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(f'error: the command line needs {error.name}: pip install "streams-queue[cli]"')
    app(prog_name="streams-queue")  # what completion knows it by, however it was started
