"""What the documentation shows is run, and not only read."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from graphile_worker_py import MissingRightsError, SyncWorkerUtils
from tests.support.node import WITHOUT_SIDE_SCHEMA
from tests.support.pages import PageRun, blocks_of, check_commands
from tests.support.processes import Processes
from tests.support.upstream import NAMES
from tools import events_page, http_api_page

pytestmark = pytest.mark.any_server

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
SITE = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@WITHOUT_SIDE_SCHEMA
def test_the_code_blocks_of_a_page_do_what_it_says(
    page: Path, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Processes
) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    monkeypatch.chdir(tmp_path)
    page_run = PageRun(tmp_path, dsn, processes)
    for block in blocks_of(page):
        page_run.run(block)


@pytest.mark.parametrize(
    "text",
    [
        "```python\n1 / 0\n```",
        "<!-- test: inside utils -->\n```python\nassert await utils.get_job(1)\n```",
        "```sh\ngraphile-worker-py jobs --stat ready\n```",
        "```sh\nfalse; true\n```",
        "```sql\nselect 1 from graphile_worker.job\n```",
        "```sh\necho 1\n```\n<!-- test: output -->\n```text\none\n```",
        "```yaml\ncommand: [graphile-worker-py, --task, tasks]\n```",
        "```ini\n[Service]\nExecStart=/bin/graphile-worker-py --job 10\n```",
        "<!-- test: skip: here -->\n```sh\nPATH=. graphile-worker-py worker\n```",
        '<!-- test: until "ready" -->\n```sh\necho set\n```',
        '<!-- test: until 2 "once" -->\n```sh\necho once\n```',
        "<!-- test: by test_roles -->\n```sql\nselect 1\n```",
        "<!-- test: sql select 1 from nowhere -->\n```sql\nselect 1\n```",
        "```text\nsomething that is said\n```",
        "<!-- test: printed echo one -->\n```text\ntwo\n```",
        "```elisp\n(+ 1 2)\n```",
        "<!-- test: fails id {} -->\n```python\nid=__import__('graphile_worker_py').task(id)\n```",
    ],
)
def test_a_block_that_is_wrong_is_found(
    text: str, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Processes
) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{text}\n", encoding="utf-8")
    *before, wrong = blocks_of(page)
    page_run = PageRun(tmp_path, dsn, processes)
    for block in before:
        page_run.run(block)
    with pytest.raises((AssertionError, ArithmeticError, psycopg.Error)):
        page_run.run(wrong)


def test_blocks_that_are_not_run_have_a_reason_that_no_test_can_help() -> None:
    reasons = [
        reason for page in PAGES for block in blocks_of(page) for reason in block.all("skip:")
    ]
    assert reasons == [
        "its tasks are those of the reader",
        "it takes an hour",
        "it installs the package, which the tests already run in",
    ]


def test_the_commands_of_the_readme_exist() -> None:
    # Its Python and SQL are run by tests/test_readme.py, its first and last command by CI.
    for block in blocks_of(ROOT / "README.md"):
        if block.language == "sh":
            check_commands(block.text)


def test_what_hides_all_rows_is_told_as_the_page_about_roles_shows_it(dsn: str) -> None:
    page = DOCS / "security.md"
    (shown,) = [block.text for block in blocks_of(page) if block.language == "text"]
    with psycopg.connect(dsn, autocommit=True) as conn:
        name, owner = conn.info.dbname + "_shown", conn.info.user
        conn.execute(f"create role {name} login password 'secret'")
        conn.execute(f"grant usage on schema graphile_worker to {name}")
        conn.execute(f"grant all on all tables in schema graphile_worker to {name}")
        try:
            with (
                pytest.raises(MissingRightsError) as told,
                SyncWorkerUtils(make_conninfo(dsn, user=name, password="secret")),
            ):
                pass
        finally:
            conn.execute(f"drop owned by {name} cascade")
            conn.execute(f"drop role {name}")
    said = str(told.value).replace(name, "app").replace(f"{owner!r}", "'jobs_owner'")
    assert said == " ".join(shown.split())


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


def test_the_calls_of_the_http_api_are_what_the_code_says() -> None:
    page = DOCS / "http-api.md"
    assert http_api_page.rewritten(page.read_text(encoding="utf-8")) == page.read_text(
        encoding="utf-8"
    ), "run `python -m tools.http_api_page`"


def _rows_of(page: Path) -> list[list[str]]:
    """The cells of all rows of the tables of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if line.startswith("|") and not line.startswith("| ---")
    ]


@pytest.mark.parametrize("group", NAMES)
def test_all_that_graphile_worker_has_is_in_a_row_of_the_compatibility_page(group: str) -> None:
    named = {
        name
        for row in _rows_of(DOCS / "compatibility.md")
        for cell in row[:2]
        for span in re.findall(r"`([^`]+)`", cell)
        for name in (span, span.split()[0])
    }
    assert [name for name in NAMES[group].split() if name not in named] == []
