"""The benchmark works, on a few messages and ours alone; what it measures is for `make bench` to say."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from bench import chart, inserts, page, rows, shards
from bench.chart import Bar
from bench.peers import OURS, PEERS, PROGRAMS
from bench.rows import Figures, Pair
from bench.runs import Bench, Failed, Options, Run

pytestmark = pytest.mark.leaks("programs are killed where they stand")


@pytest.fixture
def bench(server) -> Bench:
    return Bench(server.url, Options(messages=300, pairs=1, bytes=10))


def test_ours_enqueues_and_finishes(bench):
    for program in ("fill", "fill-many"):
        bench.flush()
        assert bench.fill(OURS, 300, program) > 0
        run = bench.work(OURS, 300)
        assert run.rate > 0
        assert bench.client.zcard("bench:queue:main") == 0


def test_servers_share_the_work():
    for work in shards._measured(2, 4, 400):
        one, another = work.commands
        assert work.rate > 0
        assert one == pytest.approx(another, rel=0.5)


def test_a_program_that_fails_is_told_of(bench):
    with pytest.raises(Failed, match="ended"):
        bench.fill(OURS, 300, "nonesuch")


def test_commands_are_counted_for_one_message(bench):
    figures = Figures()
    rows.commands(bench, figures)
    calls, spent = figures.commands["evalsha"]
    assert 0 < calls < 2
    assert spent > 0
    assert [(row.target, row.met) for row in figures.rows] == [("reported", None)]


def test_the_row_is_that_of_the_queue_that_we_are_least_ahead_of():
    figures = Figures()
    pairs = {"slow": [Pair(10, 1)], "fast": [Pair(12, 2), Pair(10, 2), Pair(30, 2)], "other": [Pair(1, 100)]}
    rows._against(figures, "work", pairs, ["slow", "fast"], 6)
    assert figures.rows == [rows.Row("work, against fast", "6 x", "6.00 x", met=True)]


def test_every_peer_has_its_program_and_its_versions():
    assert {peer.program.removesuffix(".mjs") for peer in PEERS} <= {path.stem for path in PROGRAMS.iterdir()}
    for peer in PEERS:
        assert all("==" in package or "@" in package for package in peer.packages), peer.name


def test_the_page_has_the_figures(bench, tmp_path, monkeypatch):
    copied = tmp_path / "benchmarks.md"
    copied.write_text(page.PAGE.read_text())
    monkeypatch.setattr(page, "PAGE", copied)
    monkeypatch.setattr(page, "CHART", tmp_path / "benchmarks.svg")
    cost = Run(1.0, 0.5, 0.0001, 0.00002)
    figures = Figures(
        finish={"arq": [Pair(20, 4)]}, costs={"arq": [cost], OURS.name: [cost]}, missing={"SAQ": "no | network"}
    )
    figures.add("work", "6 x", "5.00 x", met=False)
    for _ in range(2):
        page.written(bench, figures)
        text = copied.read_text()
        assert "| work | 6 x | 5.00 x | **missed** |" in text
        assert "| 4 | 5.00 x | 100 µs | 20 µs | - | - | - | - |" in text
        assert "| 20 | - | 100 µs | 20 µs | - | - | - | - |" in text
        assert "not run: no / network" in text
        assert text.count("<!-- bench: end -->") == 5
    assert ET.parse(tmp_path / "benchmarks.svg").getroot().attrib["role"] == "img"


def test_the_chart_is_told_in_words_and_escaped():
    drawn = ET.fromstring(chart.drawn("a <b>", [("head & all", [Bar("slow", 10.0), Bar("us", 2000.0)])], "us"))
    words = drawn.findtext("{http://www.w3.org/2000/svg}desc")
    assert words == "head & all: us 2,000, slow 10"
    widths = [rect.attrib["width"] for rect in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths == [str(chart.BAR), "2"]


def test_inserts_one_by_one_and_in_batches_are_compared(server, capsys):
    table = inserts.Nowhere()
    inserts.compare("nowhere", server.url, table, messages=60, size=20, pairs=1)
    assert table.count() == 120
    assert "in batches of 20:" in capsys.readouterr().out
