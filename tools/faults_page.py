"""Write the table of faults in `docs/reliability.md` from a long run of the tests that make them.

Run it as `python -m tools.faults_page`. It takes a quarter of an hour, and as root it can mount
the small disk that one of the tests needs.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGIN = "<!-- begin: written by tools/faults_page.py -->\n"
END = "<!-- end -->\n"
COMMAND = [sys.executable, "-m", "pytest", "tests/faults", "-k", "test_outages", "--long"]


def figures(report: Path) -> Iterator[dict[str, Any]]:
    """What the tests noted in a report of pytest."""
    for item in ElementTree.parse(report).iter("property"):  # noqa: S314  # it is our own
        if item.get("name") == "fault":
            yield json.loads(item.get("value", ""))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in the order in which the tests ran."""
    lines = ["| fault | jobs | at work again after | ran twice | lost |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {row['fault']} | {row['jobs']:,} | {row['resumed']:.1f} s "
        f"| {row['doubled']} | {row['lost']} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def rewritten(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """The page with these rows."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"


def main() -> None:
    """Run the tests; rewrite the page if all pass."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*COMMAND, f"--junitxml={report}", *sys.argv[1:]]
        subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603
        rows = list(figures(report))
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
