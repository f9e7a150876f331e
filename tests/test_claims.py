"""What the documentation claims is shown by tests that exist, and `docs/claims.md` names them."""

import ast
import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest

from graphile_worker_py import events
from tests.support.upstream import EVENTS, TEST_FILES
from tools import claims_page

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", claims_page.PAGES)
def test_every_claim_of_a_page_has_tests_and_all_tests_have_a_claim(page: str) -> None:
    tests = claims_page.tests_of_claims()[page]
    assert set(claims_page.claims_in(claims_page.page_named(page))) == set(tests)
    assert [claim for claim, named in tests.items() if not named] == []


@pytest.mark.parametrize("page", claims_page.PAGES)
def test_every_row_of_a_table_without_figures_is_a_claim(page: str) -> None:
    assert claims_page.rows_without_a_claim(claims_page.page_named(page)) == []


def test_a_row_without_an_anchor_is_found_unless_its_table_shows_figures() -> None:
    claims = '| a | b |\n| --- | --- |\n| <a id="one"></a>1 | 2 |\n| 3 | 4 |\n'
    figures = "| a | b |\n| --- | ---: |\n| 5 | 6 |\n"
    assert claims_page.rows_without_a_claim(f"{claims}\n{figures}") == ["| 3 | 4 |"]


def test_rows_and_list_items_with_an_anchor_are_claims_under_their_heading() -> None:
    page = '## Rows\n| <a id="one"></a>1 | 2 |\n\n## Items\n- <a id="two"></a>goes\n  on\n- none\n'
    assert claims_page.claims_in(page) == {
        "one": claims_page.Claim("Rows", ("1", "2")),
        "two": claims_page.Claim("Items", ("goes on",)),
    }


def test_two_claims_with_the_same_id_are_refused() -> None:
    with pytest.raises(ValueError, match="'one'"):
        claims_page.claims_in('- <a id="one"></a>1\n- <a id="one"></a>2\n')


def test_every_test_that_is_named_exists() -> None:
    named = [
        test
        for page in claims_page.tests_of_claims().values()
        for tests in page.values()
        for test in tests
    ]
    assert [test for test in named if _source_of(test) is None] == []


def test_the_page_of_claims_is_current() -> None:
    current = claims_page.PAGE.read_text(encoding="utf-8")
    assert current == claims_page.text(), "run `python -m tools.claims_page`"


def test_every_test_file_of_graphile_worker_has_tests_here() -> None:
    tests = claims_page.tests_of_claims()[claims_page.UPSTREAM]
    assert sorted(tests) == sorted(TEST_FILES.split())
    assert [file for file, named in tests.items() if not named] == []


def test_a_row_about_an_event_names_its_fields_and_has_a_test_that_looks_at_it() -> None:
    kinds = {
        kind.name: kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, events.Event) and hasattr(kind, "name")
    }
    tests = claims_page.tests_of_claims()["compatibility"]
    rows = {
        claim.cells[0].strip("`"): (claim.cells[-1], tests[ident])
        for ident, claim in claims_page.claims_in(claims_page.page_named("compatibility")).items()
        if claim.section == "Events"
    }
    assert sorted(rows) == sorted(EVENTS.split())
    for name, (ours, named) in rows.items():
        kind = kinds[name]
        fields = [field.name for field in dataclasses.fields(kind)]
        assert re.findall(r"`(\w+)`", ours) == [kind.__name__, *fields], name
        looking = [_source_of(test) or "" for test in named]
        assert any(name in text or kind.__name__ in text for text in looking), name


def _source_of(test: str) -> str | None:
    """The source of a test named as module::test; None if there is none."""
    module, name = test.split("::")
    return _functions_of(module).get(name)


@cache
def _functions_of(module: str) -> dict[str, str]:
    paths = [
        path
        for folder in ("tests", "compat_tests")
        for path in (ROOT / folder).rglob(f"{module}.py")
    ]
    sources = [path.read_text(encoding="utf-8") for path in paths]
    return {
        node.name: ast.get_source_segment(source, node) or ""
        for source in sources
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
