"""What the pages say is true: their examples run, their links lead somewhere, their tables equal the code."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest

import servers
from docs.pages import PAGES, ROOT, Reader, blocks, commands, code, column
from streams_queue.cli.app import app
from streams_queue.codec import ENGINE_FIELDS
from streams_queue.keys import Keys
from streams_queue.model import TRANSITIONS, Status
from streams_queue.settings import _SCHEMES, Settings

README = ROOT / "README.md"
BY_NAME = {path.name: path for path in PAGES}


def test_every_page_is_there():
    assert set(BY_NAME) >= {"README.md", "CHANGELOG.md", "index.md", "life-of-a-message.md", "keys.md"}


@pytest.mark.leaks("pages leave messages where they show them")
@pytest.mark.parametrize("page", BY_NAME)
async def test_a_page_does_what_it_says(page, server, tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMS_QUEUE_URL", server.url)
    monkeypatch.chdir(tmp_path)
    url = urlsplit(server.url)
    assert url.hostname and url.port
    reader = Reader(tmp_path, server.url, url.hostname, url.port)
    await reader.follow(BY_NAME[page])


@pytest.mark.parametrize("page", BY_NAME)
def test_every_block_is_of_a_known_kind(page):
    for block in blocks(BY_NAME[page]):
        assert block.language in {"python", "text", "console", "sh", "ini"}, f"{page}:{block.line}"
        assert block.text.startswith("$ ") or block.language != "console", f"{page}:{block.line}"


@pytest.mark.parametrize("page", BY_NAME)
def test_commands_exist(page):
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks(BY_NAME[page]):
        if block.language in {"sh", "console"}:
            lines = block.text.splitlines() if block.language == "sh" else [line for line, _ in commands(block)]
            for line in lines:
                words = shlex.split(line, comments=True)
                words = words[next((i for i, word in enumerate(words) if "=" not in word), 0) :]
                if words[:1] == ["make"]:
                    assert words[1] in targets, line
                if words[:1] == ["streams-queue"] and not words[1].startswith("-"):
                    assert words[1] in known, line


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", BY_NAME)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", BY_NAME[page].read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (BY_NAME[page].parent / name).resolve() if name else BY_NAME[page]
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in _anchors(target), f"{page}: {link}"


@pytest.mark.parametrize("page", BY_NAME)
def test_lines_fit_and_name_no_place_of_our_own(page):
    for number, line in enumerate(BY_NAME[page].read_text().splitlines(), 1):
        assert len(line) <= 120 or line.startswith("|"), f"{page}:{number} is {len(line)} characters long"
        assert "/work/" not in line and "/tmp/" not in line, f"{page}:{number}"


# ---- README


class _Asked(dict[str, str]):
    """An environment that is empty, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def get(self, key, default=None):  # type: ignore[no-untyped-def,override]
        self.names.append(key)
        return default


def test_the_first_screen_is_enough():
    first = README.read_text().splitlines()[:45]
    for wanted in ("make demo", "make test", "enqueue_chat_request(", "status_callback=", "start_queue_processor()"):
        assert any(wanted in line for line in first), wanted


def test_the_configuration_table_is_what_settings_read():
    environ = _Asked()
    settings = Settings.resolve(environ=environ)
    named = {code(cell)[0] for cell in column(README, "variable")}
    assert named == set(environ.names)
    defaults = {code(name)[0]: (code(default) or [""])[0] for name, default in
                zip(column(README, "variable"), column(README, "variable", 1), strict=True)}
    host, port, db = defaults["REDIS_HOST"], defaults["REDIS_PORT"], defaults["REDIS_DB"]
    assert settings.url == f"redis://{host}:{port}/{db}"
    assert settings.timeout == float(defaults["REDIS_TIMEOUT"])
    order = [name for name in environ.names if name.endswith("_URL")]
    assert order == ["STREAMS_QUEUE_URL", "REDIS_URL"]


def test_every_kind_of_url_is_in_the_table():
    named = {word for row in (column(README, "URL"), column(README, "URL", 1)) for cell in row
             for word in re.findall(r"([a-z+]+)://", cell)}
    assert named == set(_SCHEMES)


# ---- docs/life-of-a-message.md and its picture

LIFE = ROOT / "docs" / "life-of-a-message.md"
SVG = "{http://www.w3.org/2000/svg}"
Edge = tuple[str, str, str]


def _edges_of_the_code() -> set[Edge]:
    return {
        (name, str(before or "none"), str(after or "none"))
        for name, transition in TRANSITIONS.items()
        for before, after in itertools.product(transition.before, transition.after)
    }


def _arrows() -> list[tuple[list[Edge], str]]:
    """Each arrow's edges, and its words."""
    picture = ElementTree.parse(ROOT / "docs" / "states.svg")
    return [
        (
            [tuple(re.fullmatch(r"(\w+):(\w+)>(\w+)", edge).groups()) for edge in group.get("data-edges").split()],
            " ".join(text.text for text in group.iter(f"{SVG}text")),
        )
        for group in picture.iter(f"{SVG}g")
        if group.get("class") == "edge"
    ]


def test_the_picture_has_every_transition_once():
    drawn = [edge for edges, _ in _arrows() for edge in edges]
    assert set(drawn) == _edges_of_the_code()
    assert len(drawn) == len(set(drawn))


def test_each_arrow_names_its_transitions():
    for edges, words in _arrows():
        assert {name for name, _, _ in edges} == set(re.findall(r"\w+", words)) & set(TRANSITIONS)


def test_the_picture_has_every_state():
    picture = ElementTree.parse(ROOT / "docs" / "states.svg")
    assert {text.text for text in picture.iter(f"{SVG}text") if text.get("class") == "name"} == set(Status)


def test_the_table_has_every_transition():
    def statuses(words: str) -> set[str]:
        return {"none" if word == "nothing" else word for word in words.strip().split(", ")}

    written = {
        (code(name)[0], before, after)
        for name, move in zip(column(LIFE, "transition"), column(LIFE, "transition", 1), strict=True)
        for before, after in itertools.product(*map(statuses, move.split("→")))
    }
    assert written == _edges_of_the_code()


# ---- docs/keys.md

KEYS = ROOT / "docs" / "keys.md"
ARGUMENTS = {"message": "{id}", "lock": "{id}", "done": "{id}", "slot": "{h}", "user": "{sha1}", "channel": "{token}"}
"""What stands for the argument of each method of `Keys` in the table."""

NO_KEYS = {"prefix", "has_hash_tag"}


def _keys_of_the_code() -> set[str]:
    keys, found = Keys("P"), set()
    for name in (name for name in dir(keys) if not name.startswith("_") and name not in NO_KEYS):
        value = getattr(keys, name)
        if callable(value):
            found.add(value("x").rpartition(":")[0] + ":" + ARGUMENTS[name])
        else:
            found.update([value] if isinstance(value, str) else value.values() if isinstance(value, dict) else value)
    return found


def test_the_table_has_every_key():
    assert {code(cell)[0] for cell in column(KEYS, "key")} == _keys_of_the_code()


def _package(*endings: str) -> str:
    folders = (ROOT / "streams_queue", ROOT / "compat")
    return "\n".join(
        path.read_text() for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in endings
    )


def test_the_tables_have_every_field():
    fields = {field for cell in column(KEYS, "field") for field in code(cell)}
    engine = set(re.findall(r"_sq_[a-z]+", _package(".lua", ".py")))
    assert {field for field in fields if field.startswith("_sq_")} == engine
    assert {field for field in fields if not field.startswith("_")} == ENGINE_FIELDS


def test_the_table_has_every_counter():
    counted = set(re.findall(r"""(?:count\(['"])(\w+)""", _package(".lua", ".py")))
    assert {code(cell)[0] for cell in column(KEYS, "counter")} == counted


def test_the_table_has_every_agreement():
    text = _package(".lua", ".py")
    cursors = {f"{name}_{letter}" for name in re.findall(r"'(\w+_cursor)_'", text) for letter in "hnl"}
    written = {name for fields in re.findall(r"call\('HSET', META, ('.*)\)", text) for name in re.findall(r"'(\w+)'", fields)}
    written |= set(re.findall(r"self\.keys\.meta, \"(\w+)\"", text))
    assert {field for cell in column(KEYS, "agreement") for field in code(cell)} == cursors | written - {"1"}
