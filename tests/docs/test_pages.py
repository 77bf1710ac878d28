"""What the pages say is true: their examples run, their links lead somewhere, their tables equal the code."""

from __future__ import annotations

import inspect
import itertools
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import pytest
from starlette.routing import Route

import servers
from docs.pages import PAGES, ROOT, Reader, blocks, code, column, commands, tables
from streams_queue import Queue, ShardedQueue, Worker, errors
from streams_queue.cli import bench, change, doctor, look, stats
from streams_queue.cli import dashboard as dashboard_command
from streams_queue.cli import worker as worker_command
from streams_queue.cli.app import app
from streams_queue.cli.doctor.roles import Role
from streams_queue.cli.doctor.server import _FINDINGS
from streams_queue.cli.options import EXIT_CODES
from streams_queue.codec import ENGINE_FIELDS
from streams_queue.dashboard import dashboard
from streams_queue.keys import Keys
from streams_queue.letters import Reason, Wanted
from streams_queue.limits import FIELDS
from streams_queue.metrics import REFUSING
from streams_queue.model import TRANSITIONS, Status
from streams_queue.settings import _SCHEMES, Settings
from streams_queue.story import story_of
from streams_queue_compat.redis_queue_manager import RedisQueueManager

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
        assert block.language in {"python", "text", "console", "sh", "ini", "yaml"}, f"{page}:{block.line}"
        assert block.text.startswith("$ ") or block.language != "console", f"{page}:{block.line}"


def _commands() -> set[str]:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    return known | {group.name for group in app.registered_groups if group.name}


@pytest.mark.parametrize("page", BY_NAME)
def test_commands_exist(page):
    known = _commands()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks(BY_NAME[page]):
        if block.language in {"sh", "console"}:
            lines = block.text.splitlines() if block.language == "sh" else [line for line, _ in commands(block)]
            for line in lines:
                words = shlex.split(line.replace("\\\n", ""), comments=True)
                words = words[next((i for i, word in enumerate(words) if "=" not in word), 0) :]
                if words[:1] == ["make"]:
                    assert words[1] in targets, line
                if words[:1] == ["streams-queue"] and not words[1].startswith("-"):
                    assert words[1] in known, line


@pytest.mark.parametrize("page", BY_NAME)
def test_every_file_is_used_by_a_later_command(page):
    found = list(blocks(BY_NAME[page]))
    for number, block in enumerate(found):
        if block.file:
            later = "".join(other.text for other in found[number + 1 :])
            assert re.search(rf"\b{Path(block.file).stem}\b", later), f"{page}:{block.line}"


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

    def get(self, key, default=None):
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
    defaults = {
        code(name)[0]: (code(default) or [""])[0]
        for name, default in zip(column(README, "variable"), column(README, "variable", 1), strict=True)
    }
    host, port, db = defaults["REDIS_HOST"], defaults["REDIS_PORT"], defaults["REDIS_DB"]
    assert settings.url == f"redis://{host}:{port}/{db}"
    assert settings.timeout == float(defaults["REDIS_TIMEOUT"])
    order = [name for name in environ.names if name.endswith("_URL")]
    assert order == ["STREAMS_QUEUE_URL", "REDIS_URL"]


def test_every_kind_of_url_is_in_the_table():
    named = {
        word
        for row in (column(README, "URL"), column(README, "URL", 1))
        for cell in row
        for word in re.findall(r"([a-z+]+)://", cell)
    }
    assert named == set(_SCHEMES)


# ---- docs/design-notes.md


def test_every_room_is_named_once():
    named = [name for cell in column(ROOT / "docs" / "design-notes.md", "what you look for", 1) for name in code(cell)]
    places = {"lua/include/"} | {
        f"{path.name}/" if path.is_dir() else path.stem
        for path in (ROOT / "streams_queue").iterdir()
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")
    }
    assert sorted(named) == sorted(places - {"__init__"})


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
    picture = ET.parse(ROOT / "docs" / "states.svg")
    return [
        (
            re.findall(r"(\w+):(\w+)>(\w+)", group.attrib["data-edges"]),
            " ".join(text.text or "" for text in group.iter(f"{SVG}text")),
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
    picture = ET.parse(ROOT / "docs" / "states.svg")
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
ARGUMENTS = {
    "message": "{id}",
    "lock": "{id}",
    "done": "{id}",
    "slot": "{h}",
    "user": "{sha1}",
    "arriving": "{id}",
    "moved": "{id}",
    "channel": "{token}",
    "turns": "{sha1}",
    "parked_of": "{sha1}",
    "pause": "{sha1}",
    "rate_of": "{sha1}",
    "accepts_of": "{sha1}",
}
"""What stands for the argument of each method of `Keys` in the table."""

NO_KEYS = {"prefix", "has_hash_tag"}


def _keys_of_the_code() -> set[str]:
    keys, found = Keys("P"), set()
    for name in (name for name in dir(keys) if not name.startswith("_") and name not in NO_KEYS):
        value = getattr(keys, name)
        if callable(value):
            arguments = "x" * len(inspect.signature(value).parameters)
            found.add(value(*arguments).rpartition(":")[0] + ":" + ARGUMENTS[name])
        else:
            found.update([value] if isinstance(value, str) else value.values() if isinstance(value, dict) else value)
    return found


def test_the_table_has_every_key():
    assert {code(cell)[0] for cell in column(KEYS, "key")} == _keys_of_the_code()


def _package(*endings: str, folders: Iterable[str] = ("streams_queue", "compat", "migrations")) -> str:
    return "\n".join(
        path.read_text()
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in endings and "cli" not in path.parts
    )


def test_the_tables_have_every_field():
    fields = {field for cell in column(KEYS, "field") for field in code(cell)}
    engine = set(re.findall(r"_sq_[a-z]+", _package(".lua", ".py")))
    assert {field for field in fields if field.startswith("_sq_")} == engine
    assert {field for field in fields if not field.startswith("_")} == ENGINE_FIELDS


def test_the_table_has_every_counter():
    counted = set(re.findall(r"""(?:count\(['"])(\w+)""", _package(".lua", ".py"))) - {"dead_", "refused_"}
    by_reason = {f"dead_{reason}" for reason in Reason} | {f"refused_{limit}" for limit in REFUSING}
    assert {name for cell in column(KEYS, "counter") for name in code(cell)} == counted | by_reason


def test_the_table_has_every_agreement():
    text = _package(".lua", ".py")
    cursors = {f"{name}_{letter}" for name in re.findall(r"'(\w+_cursor)_'", text) for letter in "hnl"}
    writes = re.findall(r"call\('HSET(?:NX)?', META, ('.*)\)", text)
    written = {name for fields in writes for name in re.findall(r"'(\w+)'", fields)}
    written |= set(re.findall(r"self\.keys\.meta, \"(\w+)\"", text))
    written |= set(FIELDS)
    values = {"0", "1", "done"}
    assert {field for cell in column(KEYS, "agreement") for field in code(cell)} == cursors | written - values


def test_the_table_has_every_field_of_the_registry():
    written = re.findall(r"'(\w+)', (?:ARGV|'1')", (ROOT / "streams_queue" / "lua" / "register.lua").read_text())
    documented = {field for cell in column(KEYS, "registry") for field in code(cell)}
    assert documented == {*written, "former", "moving", "server 2"}


# ---- docs/scaling.md

SCALING = ROOT / "docs" / "scaling.md"


def test_the_arguments_are_those_of_a_sharded_queue():
    named = dict(zip(column(SCALING, "argument"), column(SCALING, "argument", 1), strict=True))
    arguments = inspect.signature(ShardedQueue).parameters
    assert {code(name)[0] for name in named} == set(arguments) - {"prefix", "payload", "options"}
    for name, default in named.items():
        assert default in {f"`{arguments[code(name)[0]].default!r}`", "from the environment"}


# ---- docs/native-api.md

NATIVE = ROOT / "docs" / "native-api.md"


@pytest.mark.parametrize("kind", [Queue, Worker])
def test_the_arguments_are_those_of_the_code(kind):
    documented = [
        {code(row[0])[0]: row[1] for row in table[1:]}
        for table in tables(NATIVE)
        if table[0][:2] == ["argument", "default"]
    ]
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    (ours,) = (table for table in documented if set(table) == set(options))
    for name, default in options.items():
        assert ours[name] == f"`{default!r}`" or (name == "url" and default is None), name


def test_the_table_has_every_error():
    assert {code(cell)[0] for cell in column(NATIVE, "error")} | {"StreamsQueueError"} == set(errors.__all__)


@pytest.mark.parametrize("error", [error for error in errors.__all__ if error != "StreamsQueueError"])
def test_what_is_not_raised_yet_is_not(error):
    (meaning,) = (
        row[1] for table in tables(NATIVE) if table[0][0] == "error" for row in table if code(row[0]) == [error]
    )
    raised = re.search(rf"\b(raise|return|except|case) {error}\b", _package(".py").replace(errors.__doc__ or "", ""))
    assert ("not raised yet" in meaning) is (raised is None) or error == "Rejected"


# ---- docs/documented-api.md


def test_the_environment_table_has_every_variable():
    named = {code(cell)[0] for cell in column(ROOT / "docs" / "documented-api.md", "setting")}
    assert named == set(re.findall(r"CHAT_API_HANDLER|CHAT_API_CONCURRENCY|(?<=environ.get\(\")\w+", _compat()))


def _compat() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "compat").rglob("*.py"))


def test_every_documented_attribute_is_named():
    page = (ROOT / "docs" / "documented-api.md").read_text()
    for name, default in {"max_retries": 3, "retry_delay_base": 5, "lock_expiry": 300, "dedup_expiry": 3600}.items():
        assert getattr(RedisQueueManager("P"), name) == default
        assert re.search(rf"`{name}` \({default}\b", page), name


# ---- docs/command-line.md

COMMANDS = ROOT / "docs" / "command-line.md"


def test_the_exit_codes_are_those_that_help_tells():
    listed = re.findall(r"^  (\d)  (.*)$", EXIT_CODES, re.MULTILINE)
    assert list(zip(column(COMMANDS, "exit code"), column(COMMANDS, "exit code", 1), strict=True)) == listed


def test_every_command_that_looks_or_changes_has_its_names_in_json():
    described = {name.split()[0] for cell in column(COMMANDS, "command") for name in code(cell)}
    rooms = {room.__name__ for room in (look, change, stats, doctor, bench)}
    ours = {
        command.callback.__name__
        for command in app.registered_commands
        if command.callback and command.callback.__module__ in rooms
    }
    assert described == {*ours, "dlq", "limits"}


def test_the_filters_and_reasons_are_those_of_the_command():
    filters = {name for cell in column(COMMANDS, "filter") for name in code(cell)}
    assert filters == {f"--{name.replace('_', '-')}" for name in Wanted._fields}
    (reasons,) = (cell for cell in column(COMMANDS, "filter", 1) if "reason" in cell)
    assert code(reasons) == list(Reason)


async def test_the_names_in_json_are_those_of_the_commands(server, prefix):
    async with Queue(prefix, url=server.url) as queue:
        await queue.enqueue({}, id="o1")
        story = await story_of(queue, "o1")
    assert set(story or ()) == {name for cell in column(COMMANDS, "name in a story") for name in code(cell)}


# ---- docs/operating.md

OPERATING = ROOT / "docs" / "operating.md"


def test_the_exit_codes_are_those_of_the_command():
    listed = re.findall(r"^  (\d)  (.*)$", worker_command.EPILOG, re.MULTILINE)
    meanings = (cell.replace("`", "") for cell in column(OPERATING, "exit code", 1))
    assert list(zip(column(OPERATING, "exit code"), meanings, strict=True)) == listed


def test_the_servers_are_those_of_the_tests():
    assert {code(cell)[-1] for cell in column(OPERATING, "server", 1)} == set(servers.NAMES)


def test_the_findings_are_those_of_the_code():
    source = (ROOT / "streams_queue" / "inspection.py").read_text()
    rows = [
        (code(name)[0], severity)
        for name, severity in zip(column(OPERATING, "finding"), column(OPERATING, "finding", 1), strict=True)
    ]
    found = re.findall(r'return Finding\(\s*"([\w-]+)",\s*((?:Severity\.\w+|\w+|\s)+),', source)
    assert rows == [(name, " or ".join(re.findall(r"Severity\.(\w+)", text)).lower()) for name, text in found]


# ---- the doctor


def test_the_checks_are_those_of_the_doctor():
    sources = "".join(path.read_text() for path in (ROOT / "streams_queue" / "cli" / "doctor").glob("*.py"))
    made = set(re.findall(r'(?:Check|_ok|_unknown|_iter)\(\s*"([\w-]+)"', sources)) | set(_FINDINGS)
    assert {code(cell)[0] for cell in column(OPERATING, "check")} == made


def test_the_exit_codes_are_those_of_the_doctor():
    listed = re.findall(r"^  (\d)  (.*)$", doctor.EPILOG, re.MULTILINE)
    written = zip(column(COMMANDS, "it ends with"), column(COMMANDS, "it ends with", 1), strict=True)
    assert list(written) == listed


def test_the_roles_are_those_of_the_doctor():
    assert [code(cell)[0] for cell in column(OPERATING, "role")] == list(Role)


# ---- docs/dashboard.md

DASHBOARD = ROOT / "docs" / "dashboard.md"


def test_the_dashboards_exit_codes_are_those_of_the_command():
    listed = re.findall(r"^  (\d)  (.*)$", dashboard_command.EPILOG, re.MULTILINE)
    assert list(zip(column(DASHBOARD, "exit code"), column(DASHBOARD, "exit code", 1), strict=True)) == listed


def test_the_dashboards_arguments_are_those_of_the_code():
    documented = dict(zip(column(DASHBOARD, "argument"), column(DASHBOARD, "argument", 1), strict=True))
    arguments = inspect.signature(dashboard).parameters
    assert [code(name)[0] for name in documented] == list(arguments)
    for name, default in documented.items():
        assert default in {f"`{arguments[code(name)[0]].default!r}`", "from the environment"}


def test_the_dashboards_addresses_are_those_of_the_code():
    routes = [route for route in dashboard(url="redis://localhost")._routes.routes if isinstance(route, Route)]
    calls = {
        (method, route.path)
        for route in routes
        if route.path.startswith("/api/")
        for method in (route.methods or set()) - {"HEAD"}
    }
    documented = {tuple(code(cell)[0].split()) for cell in column(DASHBOARD, "address")}
    assert documented == calls - {("GET", "/api/openapi.json")}
