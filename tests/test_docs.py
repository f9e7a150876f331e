"""What the documentation shows is run, and not only read."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import PageRun, blocks_of, check_commands
from tests.support.processes import Processes
from tools import events_page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
SITE = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def installer() -> str:
    """Who installed the schema makes no difference here: other tests show that."""
    return "python"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_blocks_of_a_page_do_what_it_says(
    page: Path, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Processes
) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    monkeypatch.chdir(tmp_path)
    page_run = PageRun(tmp_path, dsn, processes)
    for block in blocks_of(page):
        page_run.run(block)


def test_the_commands_of_the_readme_exist() -> None:
    # Its Python and SQL are run by tests/test_readme.py, its first and last command by CI.
    for block in blocks_of(ROOT / "README.md"):
        if block.language == "sh":
            check_commands(block.text)


def test_every_page_is_in_the_navigation() -> None:
    assert sorted(_pages_in(SITE["nav"])) == sorted(page.name for page in PAGES)


def _pages_in(nav: Any) -> list[str]:
    match nav:
        case str():
            return [nav]
        case dict():
            return [page for part in nav.values() for page in _pages_in(part)]
    return [page for part in nav for page in _pages_in(part)]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    done = subprocess.run(
        [Path(sys.executable).parent / "zensical", "build", "--strict"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=15,
    )
    assert done.returncode == 0, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    assert "<h1" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_to_files_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [
        target
        for target in targets
        if not target.startswith(("http://", "https://")) and not (page.parent / target).exists()
    ]
    assert missing == []


def test_the_table_of_events_is_what_the_code_says() -> None:
    page = DOCS / "events.md"
    assert events_page.rewritten(page.read_text(encoding="utf-8")) == page.read_text(
        encoding="utf-8"
    ), "run `python -m tools.events_page`"
