"""What judges a trial sees what must not be."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.faults.trial import Run, out_of_order, overlaps
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


def test_the_table_of_faults_is_made_from_a_report_of_pytest(tmp_path: Path) -> None:
    figures = {"fault": "unplugged", "jobs": 1200, "resumed": 0.26, "doubled": 1, "lost": 0}
    tree = ElementTree.Element("testsuites")
    ElementTree.SubElement(tree, "property", name="fault", value=json.dumps(figures))
    ElementTree.SubElement(tree, "property", name="else", value="{}")
    report = tmp_path / "report.xml"
    ElementTree.ElementTree(tree).write(report)

    page = f"before\n{faults_page.BEGIN}old\n{faults_page.END}after\n"
    rewritten = faults_page.rewritten(page, list(faults_page.figures(report)))
    assert "| unplugged | 1,200 | 0.3 s | 1 | 0 |\n" in rewritten
    assert "old" not in rewritten
    assert rewritten.startswith("before\n")
    assert rewritten.endswith("after\n")
