"""What a crontab says, and what is told about one that says nothing sensible."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphile_worker_py.cron import (
    CronItem,
    CronItemOptions,
    Overlap,
    ParsedCronItem,
    parse_cron_item,
    parse_cron_items,
    parse_crontab,
    read_crontab,
)
from graphile_worker_py.cron.pattern import Pattern
from graphile_worker_py.errors import ConfigurationError, CrontabError

SAMPLE = """\
# ┌───────────── minute
* * * * * every_minute

\t 0 4 * * 0  \t rollup ?id=weekly&fill=1w2d&max=3&queue=q:1&priority=-2 { 'a': [1, 2,], }
*/15 8-18 1,15 */6 1-5 a/b:c-d ?jobKey=a%20b+c&jobKeyMode=preserve_run_at
5 * * * 7 last {b:"# no comment"}"""

EVERY_DAY = Pattern(
    minutes=tuple(range(60)),
    hours=tuple(range(24)),
    dates=tuple(range(1, 32)),
    months=tuple(range(1, 13)),
    dows=tuple(range(7)),
)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_all_parts_of_a_crontab_are_read(line_end: str) -> None:
    items = parse_crontab(SAMPLE.replace("\n", line_end))

    assert [(item.line, item.identifier, item.task, item.payload) for item in items] == [
        (2, "every_minute", "every_minute", None),
        (4, "weekly", "rollup", {"a": [1, 2]}),
        (5, "a/b:c-d", "a/b:c-d", None),
        (6, "last", "last", {"b": "# no comment"}),
    ]
    assert [item.options for item in items] == [
        CronItemOptions(),
        CronItemOptions(backfill_period=9 * 86400, max_attempts=3, queue_name="q:1", priority=-2),
        CronItemOptions(job_key="a b c", job_key_mode="preserve_run_at"),
        CronItemOptions(),
    ]
    assert items[0].match == EVERY_DAY
    assert items[2].match == Pattern(
        minutes=(0, 15, 30, 45),
        hours=tuple(range(8, 19)),
        dates=(1, 15),
        months=(1, 7),
        dows=(1, 2, 3, 4, 5),
    )
    last = items[3].match
    assert isinstance(last, Pattern)
    assert last.dows == (0,)


def test_job_key_without_mode_replaces_the_job() -> None:
    assert parse_crontab("* * * * * task ?jobKey=k")[0].options.job_key_mode == "replace"


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing", "\ufeff# nothing\r\n \t"])
def test_crontab_may_be_empty(text: str) -> None:
    assert parse_crontab(text) == []


def test_numbers_of_a_payload_are_what_they_are_in_javascript() -> None:
    payload = "{a:1.0, b:-0, c:0x1F, d:NaN, e:-Infinity, f:12345678901234567890, g:1e21, h:[.5]}"

    read = parse_crontab(f"* * * * * task {payload}")[0].payload

    assert repr(read) == (
        "{'a': 1, 'b': 0, 'c': 31, 'd': None, 'e': None, 'f': 12345678901234567000, "
        "'g': 1e+21, 'h': [0.5]}"
    )


@pytest.mark.parametrize(
    ("line", "column", "told"),
    [
        ("60 * * * * t", 1, "minute '60' is out of range: allowed are 0 to 59"),
        ("0 24 * * * t", 3, "hour '24' is out of range: allowed are 0 to 23"),
        ("0 1,0 0 * * t", 7, "day of month '0' is out of range: allowed are 1 to 31"),
        ("0 0 1 1,13 * t", 9, "month '13' is out of range: allowed are 1 to 12"),
        ("0 0 1 1 8 t", 9, "day of week '8' is out of range: allowed are 0 to 7"),
        ("5-70 * * * * t", 1, "minute '5-70' is out of range: allowed are 0 to 59"),
        ("1,5-5 * * * * t", 3, "minute '5-5' is not a range: its end must be above its start"),
        ("*/0 * * * * t", 1, "minute '*/0' has a step of 0: allowed are 1 and above"),
        ("1,,2 * * * * t", 3, "minute '' is empty: expected a number, a range a-b, * or */n"),
        (
            "* * * JAN * t",
            7,
            (
                "month 'JAN' is not understood: expected a number, a range a-b, * or */n "
                "(allowed are 1 to 12)"
            ),
        ),
        (
            " * * * *",
            2,
            (
                "'* * * *' is incomplete: expected five fields (minute, hour, day of month, month, "
                "day of week) and a task identifier"
            ),
        ),
        (
            "* * * * * 1t",
            11,
            (
                "task identifier '1t' is not allowed: expected a letter or _, then letters, "
                "digits, _ : / -"
            ),
        ),
        ("* * * * * t ?", 13, "'?' has no options after it: expected ?key=value&key=value"),
        (
            "* * * * * t ?max=1&foo=2",
            20,
            (
                "there is no option 'foo': allowed are id, fill, max, queue, jobKey, jobKeyMode, "
                "priority"
            ),
        ),
        ("* * * * * t ?max=1&max=1", 20, "option 'max' is given twice"),
        (
            "* * * * * t ?fill=1y",
            14,
            "option 'fill' can't be '1y': expected a duration like 30s, 10m, 12h, 1d, 2w or 1d12h",
        ),
        (
            "* * * * * t ?jobKeyMode=unsafe_dedupe",
            14,
            "option 'jobKeyMode' can't be 'unsafe_dedupe': expected replace or preserve_run_at",
        ),
        (
            "* * * * * t {a:1} # c",
            13,
            (
                "'{a:1} # c' is not understood: expected a payload from { to } up to the end of "
                "the line, or ?options before it"
            ),
        ),
        ("* * * * * t\t[1]", 13, "'[1]' is not understood: expected a payload from { to }"),
        ("* * * * * t {a}", 13, "payload '{a}' is not a JSON5 object: "),
        (
            "* * * * * t {a:\u2028 1}",
            16,
            "'\\u2028' is a line break: expected the item in one line",
        ),
    ],
)
def test_fault_is_told_with_its_place_its_text_and_what_is_allowed(
    line: str, column: int, told: str
) -> None:
    with pytest.raises(CrontabError) as refused:
        parse_crontab(f"# comment\r\n{line}\n")

    assert str(refused.value).startswith(f"line 2, column {column}: {told}")
    assert (refused.value.line, refused.value.column) == (2, column)
    assert refused.value.errors == (refused.value,)


def test_all_faults_of_a_crontab_are_told_at_once() -> None:
    text = "61 * 32 * * t ?x=1\n* * * * * ok\n* * *\n* * * * * ok"

    with pytest.raises(CrontabError) as refused:
        parse_crontab(text)

    places = [(error.line, error.column) for error in refused.value.errors]
    assert places == [(1, 1), (1, 6), (1, 16), (3, 1), (4, None)]
    assert (refused.value.line, refused.value.column) == (1, 1)
    assert str(refused.value).startswith("5 errors in crontab:\n  line 1, column 1: minute '61'")
    repeated = "line 4: cron item 'ok': the item of line 2 has the same identifier"
    assert repeated in str(refused.value)


def test_number_of_thousands_of_digits_is_out_of_range_and_no_crash() -> None:
    with pytest.raises(CrontabError, match="is out of range"):
        parse_crontab(f"{'9' * 5000} * * * * task")


def test_payload_nested_beyond_reason_is_a_fault_and_no_crash() -> None:
    with pytest.raises(CrontabError, match="not a JSON5 object"):
        parse_crontab(f"* * * * * task {{a:{'[' * 9999}{']' * 9999}}}")


def test_options_of_ours_stand_in_a_comment_above_the_item() -> None:
    text = "#py: jitter=1m30s maxBackfill=2\n#py: overlap=skip\n* * * * * task ?jobKey=k"
    with pytest.raises(CrontabError, match="has no item below it"):
        parse_crontab(text)

    items = parse_crontab(
        "#py: jitter=1m30s maxBackfill=2 overlap=skip\n* * * * * task ?jobKey=k\n* * * * * other"
    )

    assert items[0].options == CronItemOptions(
        jitter=90, max_backfill=2, overlap=Overlap.SKIP, job_key="k", job_key_mode="replace"
    )
    assert items[1].options == CronItemOptions()


def test_item_in_a_comment_of_ours_is_for_python_alone() -> None:
    items = parse_crontab("#py: timezone=Europe/Berlin\n #py:0 9 * * * task\n#py: * * * * * other")

    assert [(item.line, item.task, item.options.timezone) for item in items] == [
        (2, "task", "Europe/Berlin"),
        (3, "other", None),
    ]


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ("#py: jitter=1m\n\n* * * * * t", (1, 6), "'jitter=1m' has no item below it"),
        ("#py: jitter=1m", (1, 6), "'jitter=1m' has no item below it"),
        ("#py: jitter=1m x=2\n* * * * * t", (1, 16), "there is no option 'x': allowed are"),
        ("#py: overlap=no\n* * * * * t", (1, 6), "option 'overlap' can't be 'no'"),
        ("#py: timezone=Mars\n#py: * * * * * t", (1, 6), "option 'timezone' can't be 'Mars'"),
        ("#py: 61 * * * * t", (1, 6), "minute '61' is out of range"),
        (
            "#py: timezone=Europe/Berlin\n* * * * * t",
            (1, 6),
            "timezone 'Europe/Berlin' is for an item that Node workers would run, too, but in UTC",
        ),
    ],
)
def test_fault_in_a_comment_of_ours_is_told(text: str, place: tuple[int, int], told: str) -> None:
    with pytest.raises(CrontabError) as refused:
        parse_crontab(text)

    assert told in str(refused.value)
    assert (refused.value.line, refused.value.column) == place


def test_item_from_code_has_the_same_meaning_as_a_line() -> None:
    from_code = parse_cron_item(
        CronItem(
            "rollup",
            "0 4 * * 1-7",
            options=CronItemOptions(backfill_period=86400, max_attempts=3),
            payload={"a": 1},
            identifier="nightly",
        )
    )
    (from_line,) = parse_crontab("0 4 * * 1-7 rollup ?id=nightly&fill=1d&max=3 {a:1}")

    assert from_code == ParsedCronItem(
        identifier="nightly",
        task="rollup",
        match=from_line.match,
        options=from_line.options,
        payload={"a": 1},
    )


def test_options_of_an_item_from_code_may_be_a_mapping() -> None:
    item = parse_cron_item(CronItem("task", "* * * * *", options={"backfill_period": 60.0}))

    assert item.options == CronItemOptions(backfill_period=60.0)
    assert item.payload == {}
    assert item.identifier == "task"


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (CronItem("t", "* * * *"), "pattern '* * * *': '* * * *' is not a pattern"),
        (CronItem("t", " * * * * *"), "is not a pattern"),
        (CronItem("t", "61 * * * *"), "minute '61' is out of range: allowed are 0 to 59"),
        (CronItem("t", 5), "match must be a pattern or a function, not 5"),  # type: ignore[arg-type]
        (CronItem("t" * 129, "* * * * *"), "task has 129 characters, at most 128"),
        (CronItem("t", "* * * * *", options={"fill": 1}), "there is no option 'fill'"),
        (CronItem("t", "* * * * *", options={"max_attempts": 0}), "max_attempts 0"),
        (CronItem("t", "* * * * *", options={"backfill_period": -1}), "backfill_period must be"),
        (CronItem("t", "* * * * *", options={"backfill_period": "1d"}), "backfill_period must be"),
        (CronItem("t", "* * * * *", options={"job_key_mode": "x"}), "job_key_mode must be one of"),
        (CronItem("t", "* * * * *", options={"timezone": "X/Y"}), "timezone 'X/Y' is not known"),
        (CronItem("t", "* * * * *", options={"overlap": "skip"}), "needs a job_key"),
        (CronItem("t", "* * * * *", payload=[1]), "payload must be a mapping"),  # type: ignore[arg-type]
        (CronItem("t", "* * * * *", payload={"a": object()}), "not JSON-serialisable"),
        ({"task": "t", "match": "* * * * *"}, "must be a CronItem"),
    ],
)
def test_item_from_code_with_a_fault_is_refused(item: CronItem, told: str) -> None:
    with pytest.raises(CrontabError) as refused:
        parse_cron_items([item])

    assert told in str(refused.value)
    assert refused.value.line is None


@pytest.mark.parametrize(
    ("read", "value", "told"),
    [
        (parse_crontab, None, "crontab must be the text of a crontab, not None"),
        (parse_crontab, b"* * * * * t", "crontab must be the text of a crontab, not b'"),
        (read_crontab, 5, "crontab_file must be a path, not 5"),
        (read_crontab, "a\0", "crontab_file must be a path, not 'a\\x00'"),
        (parse_cron_items, None, "cron items must be a list of CronItem(...), not None"),
        (parse_cron_items, "t", "cron items must be a list of CronItem(...), not 't'"),
        (parse_cron_items, CronItem("t", "* * * * *"), "cron items must be a list of CronItem"),
    ],
)
def test_what_is_no_crontab_and_no_list_of_items_is_refused(
    read: Callable[[Any], Any], value: Any, told: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read(value)
    assert told in str(refused.value)


def test_all_faults_of_items_from_code_are_told_at_once() -> None:
    items = [CronItem("a", "x"), CronItem("b", "* * * * *"), CronItem("b", "* * * * *")]

    with pytest.raises(CrontabError) as refused:
        parse_cron_items(items)

    assert len(refused.value.errors) == 2
    assert "cron item 'b': an earlier item has the same identifier" in str(refused.value)


def test_crontab_file_is_read_as_node_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "crontab"
    path.write_bytes(b"\xef\xbb\xbf* * * * * task {a:'\xff'}\r\n")

    assert read_crontab(path)[0].payload == {"a": "\ufffd"}


def test_example_crontab_is_valid() -> None:
    items = read_crontab(Path(__file__).parent.parent / "examples" / "crontab")

    assert [item.identifier for item in items] == [
        "rollup",
        "weekly_rollup",
        "reports/refresh",
        "sync",
        "morning_mail",
    ]
    assert items[3].options.overlap == Overlap.SKIP
    assert items[4].options.timezone == "Europe/Berlin"


def test_crontab_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing' can't be read: No such file"):
        read_crontab(tmp_path / "missing")


@pytest.mark.parametrize("lines", ["99 * * * * a", "99 * * * * a\n* 99 * * * b"])
def test_an_error_names_its_file_and_keeps_its_place(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "crontab"
    path.write_text(lines)
    with pytest.raises(CrontabError, match=r"^crontab file '.*/crontab': ") as caught:
        read_crontab(path)
    with pytest.raises(CrontabError) as alone:
        parse_crontab(lines)
    assert str(caught.value).endswith(str(alone.value))
    assert (caught.value.line, caught.value.column) == (1, 1)
    assert [str(each) for each in caught.value.errors] == [str(each) for each in alone.value.errors]


def test_a_large_payload_is_read_at_once_if_it_is_json_and_refused_early_otherwise() -> None:
    items = ",".join('{"a":[1.0,"b"]}' for _ in range(13_000))
    started = time.monotonic()
    (item,) = parse_crontab(f'* * * * * task {{"items":[{items}]}}')
    assert item.payload is not None
    assert len(item.payload["items"]) == 13_000
    with pytest.raises(CrontabError, match=r"characters that are not JSON; JSON5 may have 32768"):
        parse_crontab(f"* * * * * task {{items:[{items}]}}")
    assert time.monotonic() - started < 3
