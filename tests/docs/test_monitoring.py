"""What docs/monitoring.md, the alert rules and the Grafana dashboard name is there in a real scrape."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from docs.pages import PAGES, ROOT, blocks, code, column
from streams_queue import Queue, Worker
from streams_queue.logs import PAYLOAD_LIMIT
from streams_queue.metrics import (
    EDITS,
    REASONS,
    exposition_of_processes,
    exposition_of_queues,
    exposition_of_registry,
    observe,
)
from streams_queue.monitor import load_of

PAGE = ROOT / "docs" / "monitoring.md"
ALERTS = ROOT / "docs" / "alerts.yml"
GRAFANA = ROOT / "docs" / "grafana.json"

SCRAPED = {"job", "instance"}
"""Labels that a scrape adds."""

Names = dict[str, set[str]]


@pytest.fixture
async def scraped(server, prefix) -> tuple[Names, str]:
    """The labels of each sample in real scrapes, and the scrapes' text."""
    registry = CollectorRegistry()
    async with Queue(prefix, url=server.url) as queue:
        observe(Worker(queue), registry=registry)
        pages = (
            await exposition_of_queues([queue]),
            exposition_of_registry(registry),
            exposition_of_processes({1: b""}, {1: 1}),
        )
        text = b"".join(page.body for page in pages).decode()
    names: Names = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    return names, text


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(GRAFANA.read_text())["panels"]
    return found


def expressions() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m")


@pytest.mark.parametrize("expression", list(expressions()))
async def test_an_expression_parses_and_names_what_is_there(expression, scraped):
    names, _ = scraped
    selected = list(selectors(promql_parser.parse(expression)))
    assert selected
    for name, labels in selected:
        assert name in names, name
        assert labels <= names[name] | SCRAPED, name
    grouped = {label.strip() for by in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for label in by.split(",")}
    assert grouped <= set().union(*(names[name] for name, _ in selected), SCRAPED)


def selectors(node: Any) -> Iterator[tuple[str, set[str]]]:
    """The name and the label names of each selector in an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name or "", {matcher.name for matcher in node.matchers.matchers}
    for part in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if (child := getattr(node, part, None)) is not None:
            yield from selectors(child)
    for child in getattr(node, "args", None) or ():
        yield from selectors(child)


def test_queue_wide_metrics_are_never_added_up():
    for expression in expressions():
        for name in re.findall(r"sum by \([^)]*\) \((?:rate\(|increase\()?(streams_queue_\w+)", expression):
            assert name.startswith("streams_queue_worker_"), expression


def test_rules_have_what_rules_need():
    for rule in rules():
        assert rule["labels"]["severity"] in {"page", "ticket", "info"}
        assert {"summary", "description"} == set(rule["annotations"])
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))


def test_each_panel_has_a_place_of_its_own():
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


async def test_the_tables_have_every_metric_with_its_type(scraped):
    _, text = scraped
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    found = {
        code(name)[0]: kind
        for heading in ("metric of a queue", "metric of a worker", "metric of a process")
        for name, kind in zip(column(PAGE, heading), column(PAGE, heading, 1), strict=True)
    }
    assert found == types


async def test_reasons_and_kinds_are_those_of_the_code(scraped):
    names = column(PAGE, "metric of a queue")
    (reasons,) = (cell for cell in column(PAGE, "metric of a queue", 2) if "given up by" in cell)
    assert set(code(reasons)) == {"reason", *REASONS, "unknown"}
    assert len(names) == len(set(names))
    counters = {name for cell in column(ROOT / "docs" / "keys.md", "counter") for name in code(cell)}
    assert {f"outside_{kind}" for kind in EDITS} == {name for name in counters if name.startswith("outside_")}
    assert {f"dead_{reason}" for reason in REASONS} == {name for name in counters if name.startswith("dead_")}


async def test_the_names_of_load_are_those_of_the_code(server, prefix):
    async with Queue(prefix, url=server.url) as queue:
        load = load_of(prefix, await queue.stats())
    named = {name for cell in column(PAGE, "name in `/load`") for name in code(cell)}
    assert named == {*load, "slots", "busy", "saturation"}


def test_the_payload_is_as_long_as_the_page_says():
    assert f"up to {PAYLOAD_LIMIT} characters" in PAGE.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_is_yaml(page):
    for block in blocks(page):
        if block.language == "yaml":
            assert list(yaml.safe_load_all(block.text)), f"{page.name}:{block.line}"
