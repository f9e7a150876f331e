"""What judges a trial sees what must not be."""

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.faults.crew import Life
from tests.faults.trial import Run, out_of_order, overlaps, queue_of
from tests.support.processes import Processes
from tools import faults_page


def run(n: int, began: float, ended: float | None, *, queue: int | None = None) -> Run:
    """A run by some pool."""
    return Run(n, queue, "pool", 1, began, ended)


def test_runs_one_after_the_other_do_not_overlap() -> None:
    runs = [run(1, 0, 1), run(1, 1, 2), run(2, 0.5, 1.5), run(3, 0.5, 3, queue=1)]
    assert overlaps(runs) == []


@pytest.mark.parametrize("ended", [2.0, None])
def test_a_job_that_begins_before_it_has_ended_overlaps(ended: float | None) -> None:
    one, two = run(1, 0, ended), run(1, 1, 3)
    assert overlaps([two, one]) == [(one, two)]


def test_jobs_of_one_queue_overlap_and_of_two_do_not() -> None:
    one, two = run(4, 0, 2, queue=1), run(24, 1, 3, queue=1)
    assert overlaps([one, two, run(8, 0, 5, queue=2)]) == [(one, two)]


def test_a_job_that_overtakes_another_one_of_its_queue_is_out_of_order() -> None:
    late, early = run(4, 2, 3, queue=1), run(24, 0, 1, queue=1)
    assert out_of_order([late, early, run(8, 1, 2, queue=2)]) == [(early, late)]
    assert out_of_order([run(4, 0, 1, queue=1), run(24, 2, 3, queue=1)]) == []


def report_of(path: Path, *figures: dict[str, Any]) -> Path:
    """A report of pytest with what tests have noted."""
    tree = ElementTree.Element("testsuites")
    for each in figures:
        ElementTree.SubElement(tree, "property", name="fault", value=json.dumps(each))
    ElementTree.SubElement(tree, "property", name="else", value="{}")
    ElementTree.ElementTree(tree).write(path)
    return path


def test_the_table_of_faults_is_made_from_a_report_of_pytest(tmp_path: Path) -> None:
    figures = {"fault": "unplugged", "jobs": 1200, "resumed": 0.26, "doubled": 1, "lost": 0}
    report = report_of(tmp_path / "report.xml", figures)

    page = f"before\n{faults_page.BEGIN}old\n{faults_page.END}after\n"
    rewritten = faults_page.rewritten(page, list(faults_page.figures(report)))
    assert "| unplugged | 1,200 | 0.3 s | 1 | 0 |\n" in rewritten
    assert "old" not in rewritten
    assert rewritten.startswith("before\n")
    assert rewritten.endswith("after\n")


def test_a_fault_has_one_row_without_node_and_with_it(tmp_path: Path) -> None:
    alone = {"crew": "unplugged", "jobs": 1200, "resumed": 0.26, "doubled": 1}
    beside = {**alone, "jobs": 1300, "doubled": 0, "node_jobs": 400, "node_resumed": 0.04}
    other = {**beside, "crew": "drowned"}
    report = report_of(tmp_path / "report.xml", alone, other, beside)

    old = f"{faults_page.BEGIN}old\n{faults_page.END}"
    page = f"{old}{faults_page.BEGIN_CREWS}older\n{faults_page.END}after\n"
    rewritten = faults_page.rewritten(page, list(faults_page.figures(report)))
    with_node = "1,300 | 400 | 0.3 s | 0.0 s | 0 |\n"
    assert f"| unplugged | 1,200 | 0.3 s | 1 | {with_node}" in rewritten
    assert f"| drowned | – | – | – | {with_node}" in rewritten
    assert "older" not in rewritten
    # There were no figures for this one.
    assert rewritten.startswith(old)


def test_a_run_that_was_cut_off_ends_there_whatever_becomes_of_it(
    tmp_path: Path, processes: Processes
) -> None:
    file = tmp_path / "runs"
    began = {"run": 0, "what": "began", "n": 4, "pool": "pool", "attempt": 1, "at": 1.0}
    file.write_text(json.dumps(began) + "\n" + '{"run": 0, "what": "en')
    life = Life(processes.start([sys.executable, "-c", ""]), file)
    assert life.is_busy()
    life.fall()
    with file.open("a") as lines:
        lines.write('ded", "at": 9e9}\n')
    (only,) = life.runs()
    assert only.was_cut_off
    assert only.ended is not None
    assert 1 < only.ended < 9e9
    assert only.queue == queue_of(4)
