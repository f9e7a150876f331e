"""What the documentation says to be shown by a test is shown by a test that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["compatibility.md", "reliability.md"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)::(test_\w+)`", text)
    assert named
    missing = [f"{module}::{test}" for module, test in named if not exists(module, test)]
    assert missing == []


def exists(module: str, test: str) -> bool:
    """Whether a test of that name is in a module of that name."""
    return any(
        re.search(rf"^(?:async )?def {test}\(", path.read_text(encoding="utf-8"), re.MULTILINE)
        for folder in ("tests", "compat_tests")
        for path in (ROOT / folder).rglob(f"{module}.py")
    )


def test_rows_of_the_tables_name_a_test() -> None:
    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    for section in text.split("\n## ")[2:]:
        rows = [line for line in section.splitlines() if line.startswith("|")][2:]
        assert rows
        assert [row for row in rows if "`test_" not in row] == []
