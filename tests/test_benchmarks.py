"""The measurements of the documentation: they run, and their tables say what was found."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.__main__ import PAGE, measured, merged, plots_beside, render_page
from benchmarks.environments import UnavailableError, interpreter
from benchmarks.lab import Lab
from benchmarks.measures import MEASURES
from benchmarks.plots import pictures
from benchmarks.report import (
    BEGIN,
    END,
    Run,
    about,
    against_no_limits,
    against_node,
    against_peers,
    inserted,
    page,
    summary,
    text,
)
from tests.support.node import Node
from tests.support.server import Server

pytestmark = pytest.mark.any_server

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results.json"


@pytest.fixture
def lab(server: Server, node: Node) -> Iterator[Lab]:
    with closing(Lab(server.dsn("postgres"), node, scale=0.01, held=0.01)) as lab:
        yield lab


def machine_of(processor: str) -> dict[str, Any]:
    """What a run tells of its machine."""
    return {
        "processor": processor,
        "cores": 2,
        "memory_gib": 4.0,
        "system": "Linux x86_64",
        "postgresql": "18.6",
        "load_before": 0.25,
    }


def run_of(**changes: Any) -> Run:
    """A stored run with figures that can be told apart."""
    stored: dict[str, Any] = {
        "measured": {
            key: {"date": "2026-01-02", "machine": machine_of("Abacus")}
            for key in (
                "batched",
                "10,000 waiting",
                "1,000,000 waiting",
                "latency",
                "open transaction",
            )
        },
        "scale": 1.0,
        "held": 10.0,
        "sides": {
            "ours": {"title": "graphile_worker_py", "about": "1.0, Python 3.11", "best": {}},
            "node": {"title": "Node <&>", "about": "0.18.0", "best": {}},
        },
        "unavailable": {"Oban for Python": "needs Python 3.12 or newer, and none was found"},
        "figures": {
            "batched": {
                "ours": [{"rate": 40_000.0}, {"rate": 60_000.0}, {"rate": 50_000.0}],
                "node": [{"rate": 20_000.0}, {"rate": 20_000.0}, {"rate": 40_000.0}],
            },
            "10,000 waiting": {"ours": [{"rate": 40.0}] * 3, "node": [{"rate": 20.0}] * 3},
            "1,000,000 waiting": {"ours": [{"rate": 30.0}] * 3, "node": [{"rate": 5.0}] * 3},
            "latency": {"ours": [{"p50": 1.5, "p95": 2.5, "p99": 12.34}] * 3},
            "open transaction": {
                "ours": [{"rate": 9.0, "kept": 0.5, "series": [[0.5, 18.0], [1.0, 9.0]]}]
            },
        },
    }
    return Run({**stored, **changes})


def test_kinds_of_history_are_measured_on_the_same_backlog(lab: Lab) -> None:
    measures = [measure for measure in MEASURES if measure.name == "history"]
    run = measured(lab, measures, 1, ("ours", "history none", "history all"))
    table = text(run)
    assert "| none |" in table
    assert "| failed (default) |" in table
    assert "| all |" in table
    assert min(run.values("history", "history all", "wal 500")) > min(
        run.values("history", "history none", "wal 500")
    )


def test_plugins_are_measured_on_the_same_backlog(lab: Lab) -> None:
    measures = [measure for measure in MEASURES if measure.name == "plugins"]
    run = measured(lab, measures, 1, ("ours", "with metrics", "with otel"))
    table = text(run)
    for plugin in ("none", "metrics", "otel"):
        assert f"| {plugin} |" in table
    # A span costs more than all that the worker does by itself.
    assert min(run.values("plugins", "with otel", "cpu 500")) > min(
        run.values("plugins", "ours", "cpu 500")
    )


def test_workers_and_pgbench_are_measured_on_the_same_backlog(lab: Lab) -> None:
    measures = [measure for measure in MEASURES if measure.name in ("batched", "default")]
    run = measured(lab, measures, 1, ("ours", "pgbench"))
    for measure in ("batched", "default"):
        assert len(run.values(measure, "pgbench", "rate")) == 1
        for figure in ("rate", "wal", "transactions"):
            assert run.median(measure, "ours", figure) > 0  # type: ignore[operator]
    assert "pgbench" in text(run)
    assert "a trial, not a result" in text(run)
    assert json.loads(json.dumps(run.stored)) == run.stored


def test_backlogs_beside_an_open_transaction_are_measured_one_by_one(lab: Lab) -> None:
    (measure,) = (measure for measure in MEASURES if measure.name == "open transaction")
    outcome = measure.run(lab, "ours")
    assert len(outcome["series"]) >= 1
    assert outcome["dead"] == len(outcome["series"]) * 100


def test_medians_and_the_ratios_of_the_rounds_are_told() -> None:
    (line,) = (line for line in against_node(run_of()).splitlines() if "batched by 500 (" in line)
    assert line == "| batched by 500 (jobs/s) | 50,000 | 20,000 | 2.00 | 1.25 … 3.00 |"


def test_limits_are_told_as_a_share_of_the_rate_without() -> None:
    figures = {
        "keyed": {"unlimited": [{"rate": 9_000.0}] * 3, "keyed": [{"rate": 3_000.0}] * 3},
        "limits": {"unlimited": [{"rate": 900.0}] * 3, "limited": [{"rate": 891.0}] * 3},
    }
    assert against_no_limits(run_of(figures=figures)).splitlines()[2:] == [
        "| a limit on jobs of 50 ms | 900 | 891 | 0.99 | 0.99 … 0.99 |",
        "| a limit with a key on jobs that do nothing | 9,000 | 3,000 | 0.33 | 0.33 … 0.33 |",
    ]


def test_measures_of_another_day_take_the_place_of_earlier_ones_and_others_stay() -> None:
    newer = {
        **run_of().stored,
        "measured": {"latency": {"date": "2026-01-04", "machine": machine_of("Slide rule")}},
        "sides": {},
        "figures": {"latency": {"ours": [{"p50": 2.0, "p95": 3.0, "p99": 4.0}]}},
    }
    both = Run(merged(run_of().stored, newer))
    assert both.median("latency", "ours", "p50") == 2.0
    assert both.values("batched", "ours", "rate") == [40_000.0, 60_000.0, 50_000.0]
    first, second = about(both).splitlines()
    assert first.startswith("- 2 cores (Abacus)")
    assert "batched, 10,000 waiting" in first
    assert second.startswith("- 2 cores (Slide rule)")
    assert second.endswith(
        "; 1 round; load average before the first round 0.25; 2026-01-04: latency."
    )
    assert both.sides == run_of().sides


def test_a_summary_has_the_medians_of_both_graphile_workers() -> None:
    latencies = {"ours": [{"p50": 1.5}, {"p50": 3.0}, {"p50": 2.5}], "node": [{"p50": 1.75}] * 3}
    figures = {**run_of().stored["figures"], "latency": latencies}
    assert summary(run_of(figures=figures)).splitlines() == [
        (
            "- With prefetching, in batches of 500: **50,000 jobs per second**; "
            "graphile-worker for Node runs 20,000."
        ),
        (
            "- A single job starts **2.50 ms** after it is added, at the median; "
            "with Node after 1.75 ms."
        ),
    ]


def test_what_a_hundred_times_as_many_jobs_leave_of_the_rate_is_told() -> None:
    line = against_node(run_of()).splitlines()[-1]
    assert line == (
        "| rate with 1,000,000 jobs waiting, divided by that with 10,000 "
        "| 0.75 | 0.25 | 3.00 | 3.00 … 3.00 |"
    )


def test_a_side_that_could_not_be_measured_is_told_with_the_reason() -> None:
    lines = against_peers(run_of()).splitlines()
    assert lines[2] == (
        "| graphile_worker_py | 50,000 | 40,000 … 60,000 | 1.50 ms | 12.3 ms | 1.0, Python 3.11 |"
    )
    assert "| Oban for Python | not measured: needs Python 3.12" in lines[-1]


def test_pictures_are_svg_with_the_names_of_the_sides() -> None:
    drawn = pictures(run_of())
    assert sorted(drawn) == ["batched.svg", "latency.svg", "open-transaction.svg"]
    for description, svg in drawn.values():
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root[0].text is not None
        assert root[0].text.startswith(description)
        assert "nan" not in svg
        assert "graphile_worker_py" in svg
    assert "Node &lt;&amp;&gt;" in drawn["batched.svg"][1]


def test_results_take_the_place_of_earlier_ones_on_the_page(tmp_path: Path) -> None:
    file = tmp_path / "performance.md"
    file.write_text(f"# Performance\n\n{BEGIN}\n{END}\n\nThe end.\n", encoding="utf-8")
    render_page(run_of(), file)
    first = file.read_text(encoding="utf-8")
    assert first.startswith(f"# Performance\n\n{BEGIN}\n\n## Results\n\n- With prefetching, ")
    assert "\n\n2 cores (Abacus)" in first
    assert first.index("](performance/batched.svg)") < first.index("| measure |")
    assert first.endswith(f"{END}\n\nThe end.\n")
    assert "](performance/batched.svg)" in first
    assert (tmp_path / "performance" / "batched.svg").exists()
    render_page(run_of(), file)
    assert file.read_text(encoding="utf-8") == first
    with pytest.raises(ValueError, match="lacks the lines"):
        inserted("# Performance\n", "x")


def test_the_results_on_the_page_are_those_of_the_stored_run() -> None:
    found = PAGE.read_text(encoding="utf-8")
    results = ""
    if RESULTS.exists():
        run = Run(json.loads(RESULTS.read_text(encoding="utf-8")))
        results = page(run, plots_beside(PAGE, run))
        for name, (_, svg) in pictures(run).items():
            assert (PAGE.with_suffix("") / name).read_text(encoding="utf-8") == svg
    assert found == inserted(found, results), f"run `python -m benchmarks --render {RESULTS.name}`"


def test_every_side_tells_its_settings_on_the_page(lab: Lab) -> None:
    found = PAGE.read_text(encoding="utf-8")
    for side in lab.sides.values():
        assert side.title in found
        for name, value in side.best.items():
            assert f"`{name} = {json.dumps(value)}`" in found, f"{side.title}: {name}"


def test_an_interpreter_that_is_new_enough_is_found_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interpreter((3, 11)) == (sys.executable, sys.version_info[:2])
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:{tmp_path / 'bin'}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"needs Python 3\.99 or newer, and none was found"):
        interpreter((3, 99))
    # A shim that has no Python behind it, as pyenv has them, is no interpreter.
    for folder, line in (("shims", "exit 127"), ("bin", "echo 3 99")):
        (tmp_path / folder).mkdir()
        program = tmp_path / folder / "python3.99"
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
    assert interpreter((3, 99)) == (str(program), (3, 99))
