"""Write the tables of faults in `docs/reliability.md` from a long run of the fault tests.

`python -m tools.faults_page` runs the tests, which takes half an hour. Run it as root: one of the
tests mounts a small disk. `python -m tools.faults_page --from REPORT...` takes the figures from
reports of pytest (`--junitxml`) instead; a table without figures in the reports stays as it is.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGIN = "<!-- begin: written by tools/faults_page.py -->\n"
BEGIN_CREWS = "<!-- begin: crews, written by tools/faults_page.py -->\n"
END = "<!-- end -->\n"
TESTS = [
    *sorted((ROOT / "tests" / "faults").glob("test_outages_*.py")),
    ROOT / "tests" / "faults" / "test_crews.py",
    ROOT / "compat_tests" / "test_faults.py",
]
# One test at a time: two at a time would recover more slowly.
COMMAND = [sys.executable, "-m", "pytest", "-n", "0", "--long", *map(str, TESTS)]
NONE = "–"


def figures(report: Path) -> Iterator[dict[str, Any]]:
    """The figures that the tests recorded in a report of pytest."""
    for item in ElementTree.parse(report).iter("property"):  # noqa: S314  # our own file
        if item.get("name") == "fault":
            yield json.loads(item.get("value", ""))


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The table for pools in one process, in the order in which the tests ran."""
    lines = ["| fault | jobs | recovery time | ran twice | lost |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {row['fault']} | {row['jobs']:,} | {row['resumed']:.1f} s "
        f"| {row['doubled']} | {row['lost']} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def table_of_crews(rows: Sequence[dict[str, Any]]) -> str:
    """The table for workers in processes, first without a Node worker, then with one."""
    alone = {row["crew"]: row for row in rows if "node_jobs" not in row}
    beside = {row["crew"]: row for row in rows if "node_jobs" in row}
    head = ["fault", "jobs", "recovery time", "ran again"]
    head += ["with Node: jobs", "run by Node", "recovery time", "Node: recovery time"]
    head += ["ran again"]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    for fault in {**alone, **beside}:
        cells = [fault]
        row = alone.get(fault)
        cells += [NONE] * 3 if row is None else of_crew(row)
        row = beside.get(fault)
        if row is None:
            cells += [NONE] * 5
        else:
            jobs, resumed, doubled = of_crew(row)
            node = [f"{row['node_jobs']:,}", resumed, f"{row['node_resumed']:.1f} s"]
            cells += [jobs, *node, doubled]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def of_crew(row: dict[str, Any]) -> list[str]:
    """The cells that both halves of the table have."""
    return [f"{row['jobs']:,}", f"{row['resumed']:.1f} s", str(row["doubled"])]


def rewritten(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """The page with tables of these rows."""
    pools = [row for row in rows if "fault" in row]
    crews = [row for row in rows if "crew" in row]
    if pools:
        page = _replaced(page, BEGIN, table(pools))
    if crews:
        page = _replaced(page, BEGIN_CREWS, table_of_crews(crews))
    return page


def _replaced(page: str, begin: str, text: str) -> str:
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(END)
    return f"{before}{begin}\n{text}\n{END}{after}"


def main() -> None:
    """Run the tests, and rewrite the page if all of them pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="reports", nargs="+", type=Path, metavar="REPORT")
    given, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        reports: list[Path] = given.reports or []
        if not reports:
            reports = [Path(folder) / "report.xml"]
            command = [*COMMAND, f"--junitxml={reports[0]}", *options]
            subprocess.run(command, cwd=ROOT, check=True)
        rows = [row for report in reports for row in figures(report)]
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
