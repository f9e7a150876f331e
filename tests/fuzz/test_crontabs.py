"""Whatever stands in a crontab: it is understood, or refused with its place."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from graphile_worker_py import (
    CronItem,
    CrontabError,
    ParsedCronItem,
    parse_cron_item,
    parse_crontab,
    read_crontab,
)
from graphile_worker_py.cron.match import Timetable
from tests.fuzz.strategies import any_text, json_values

START = datetime(2024, 2, 28, tzinfo=UTC)

fields = st.sampled_from(["*", "*/5", "1-5", "0", "59", "60", "1,2", "*/0", "5-1", "MON", "L", "-"])
options = st.sampled_from(
    ["?fill=1d", "?max=3&queue=q", "?jobKey=k&jobKeyMode=replace", "?tz=Europe/Berlin", "?fill=x"]
) | any_text.map(lambda text: f"?{text}")
payloads = st.sampled_from(["{}", "{a:1}", "{a:'#'}", "{", "{a:[1,]}"]) | any_text.map(
    lambda text: f"{{{text}}}"
)
prefixes = st.sampled_from(["", "#py:", "#py: ", "#", " ", "\t"])
lines = st.tuples(
    prefixes,
    st.lists(fields, min_size=4, max_size=6).map(" ".join),
    st.sampled_from(["task", "a:b", "1x", ""]),
    options | st.just(""),
    payloads | st.just(""),
).map(lambda parts: f"{parts[0]}{' '.join(filter(None, parts[1:]))}")
crontabs = st.lists(lines | any_text, max_size=5).map("\n".join) | any_text


def assert_place(error: CrontabError, text: str) -> None:
    """Check that each fault names a place that is there."""
    rows = text.replace("\r\n", "\n").split("\n")
    for fault in error.errors:
        assert fault.line is not None
        assert 1 <= fault.line <= len(rows)
        assert fault.column is None or 1 <= fault.column <= len(rows[fault.line - 1]) + 1


def assert_usable(item: ParsedCronItem) -> None:
    """Check that it can be told when an item is due."""
    slots = list(Timetable([item]).between(START, START + timedelta(minutes=3)))
    assert len(slots) <= 3


@given(crontabs)
@example("* * * * * t {" + "a:{" * 5000 + "}" * 5001)
@example("* * * * * t {a:" + "1" * 5000 + "}")
@example("* * * * * t {a:1e999}")
@example("* * * * * t ?fill=" + "9" * 400 + "d")
@example("* * * * * t ?max=" + "9" * 5000)
@example("* * * * * t ?queue=\ud800")
@example("* * * * * t ?queue=%00")
@example(f"{'9' * 5000} * * * * t")
@example("* * * * * t ?id=" + "x" * 1000)
@example("0 0 30 2 * never")
def test_a_crontab_is_understood_or_refused_with_line_and_column(text: str) -> None:
    try:
        items = parse_crontab(text)
    except CrontabError as error:
        assert_place(error, text)
    else:
        for item in items:
            assert_usable(item)


@given(st.binary() | crontabs.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_file_is_understood_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "crontab"
    path.write_bytes(data)
    with suppress(CrontabError):
        read_crontab(path)


values = json_values | st.just(object()) | st.binary(max_size=3)


@given(st.dictionaries(st.sampled_from(["task", "match", "payload", "identifier"]), values))
@example({"task": "t", "match": "* * * * *", "payload": {"a": "\0\ud800"}})
@example({"task": "t", "match": "* * * * *", "payload": {"a": object()}})
@example({"task": "\ud800", "match": "* * * * *"})
def test_an_item_made_in_code_is_taken_or_refused(given_values: dict[str, Any]) -> None:
    wanted = {"task": "t", "match": "* * * * *", **given_values}
    with suppress(CrontabError):
        assert_usable(parse_cron_item(CronItem(**wanted)))


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing", "\ufeff"])
def test_a_crontab_with_nothing_in_it_has_no_items(text: str) -> None:
    assert parse_crontab(text) == []
