"""The `cron` commands."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from graphile_worker_py.cli.cron import cron
from tests.cron_support import at, know

CRONTAB = """\
0 4 * * 1-5 rollup ?id=nightly&fill=1d2h&max=3&queue=q&priority=-1&jobKey=k {a: [1.0, NaN]}
#py: timezone=Europe/Berlin jitter=1m30s maxBackfill=5
#py: 30 2 * * * local
*/20 * * * * often
"""


def call(*args: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cron, args, input=stdin, env=env, catch_exceptions=False)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The path of a crontab."""
    path = tmp_path / "crontab.txt"
    path.write_text(CRONTAB)
    return str(path)


def test_check_prints_items_as_json_under_the_names_of_the_node_package(path: str) -> None:
    result = call("check", path, "--json")

    assert result.exit_code == 0
    nightly, local, often = json.loads(result.stdout)
    assert nightly == {
        "identifier": "nightly",
        "task": "rollup",
        "minutes": [0],
        "hours": [4],
        "dates": list(range(1, 32)),
        "months": list(range(1, 13)),
        "dows": [1, 2, 3, 4, 5],
        "options": {
            "backfillPeriod": 93_600_000,
            "maxAttempts": 3,
            "queueName": "q",
            "priority": -1,
            "jobKey": "k",
            "jobKeyMode": "replace",
        },
        "payload": {"a": [1, None]},
    }
    assert local["options"] == {
        "backfillPeriod": 0,
        "timezone": "Europe/Berlin",
        "jitter": 90_000,
        "maxBackfill": 5,
    }
    assert often["options"] == {"backfillPeriod": 0}
    assert often["payload"] is None


def test_check_prints_items_for_people(path: str) -> None:
    result = call("check", path)

    assert result.exit_code == 0
    assert "line 1: nightly\n  minute        0\n  hour          4\n" in result.stdout
    assert "  day of week   1 2 3 4 5\n" in result.stdout
    assert '  payload       {"a":[1,null]}\n' in result.stdout
    assert result.stdout.endswith("3 items\n")


def test_check_reads_the_standard_input() -> None:
    result = call("check", "-", stdin="* * * * * task\n")

    assert result.exit_code == 0
    assert "line 1: task" in result.stdout


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_check_tells_all_faults_and_fails(form: tuple[str, ...]) -> None:
    result = call("check", "-", *form, stdin="61 * * * * task\n\n* * * * * task ?x=1\n")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert "line 1, column 1: minute '61' is out of range" in result.stderr
    assert "line 3, column 17: there is no option 'x'" in result.stderr


def test_check_warns_of_items_that_no_worker_can_schedule() -> None:
    result = call("check", "-", stdin="* * * * * task ?max=0\n")

    assert result.exit_code == 0
    assert "warning: no worker can schedule this: line 1: cron item 'task'" in result.stderr


def test_missing_file_is_a_failure() -> None:
    result = call("check", "/nowhere/crontab")

    assert result.exit_code == 1
    assert "'/nowhere/crontab' can't be read: No such file" in result.stderr


def test_due_lists_the_runs_of_a_span(path: str) -> None:
    result = call("due", path, "--from", "2026-01-05T03:50:00Z", "--to", "2026-01-05T05:20+01:00")

    assert result.exit_code == 0
    assert result.stdout == ("2026-01-05T04:00:00.000Z  nightly\n2026-01-05T04:00:00.000Z  often\n")


def test_due_lists_the_runs_of_a_span_as_json(path: str) -> None:
    result = call(
        "due", path, "--from", "2026-01-05T03:50", "--to", "2026-01-05T04:20:01Z", "--json"
    )

    assert json.loads(result.stdout) == [
        {"ts": "2026-01-05T04:00:00.000Z", "identifier": "nightly"},
        {"ts": "2026-01-05T04:00:00.000Z", "identifier": "often"},
        {"ts": "2026-01-05T04:20:00.000Z", "identifier": "often"},
    ]


def test_due_without_runs_is_an_empty_list(path: str) -> None:
    result = call("due", path, "--from", "2026-01-05", "--to", "2026-01-05", "--json")

    assert json.loads(result.stdout) == []


def test_due_refuses_what_is_no_time(path: str) -> None:
    result = call("due", path, "--from", "yesterday", "--to", "2026-01-05")

    assert result.exit_code == 2
    assert "'yesterday' is not an ISO 8601 time" in result.stderr
    result = call("due", path, "--from", "2026-01-05", "--to", "2026-01-04")
    assert result.exit_code == 2
    assert "--to 2026-01-04T00:00:00+00:00 is before --from 2026-01-05T00:00:00+00:00" in (
        result.stderr
    )


def test_next_shows_the_coming_runs_of_each_line(path: str) -> None:
    result = call("next", path, "-n", "2", "--from", "2026-03-28T20:00:30Z")

    assert result.stdout == (
        "line 1: nightly\n"
        "  Mon 2026-03-30 04:00 UTC  in 1d 8h\n"
        "  Tue 2026-03-31 04:00 UTC  in 2d 8h\n"
        "line 3: local\n"
        "  Sun 2026-03-29 03:00 Europe/Berlin  in 5h\n"
        "  Mon 2026-03-30 02:30 Europe/Berlin  in 1d 4h 30m\n"
        "line 4: often\n"
        "  Sat 2026-03-28 20:20 UTC  in 20m\n"
        "  Sat 2026-03-28 20:40 UTC  in 40m\n"
    )


def test_next_says_never_for_a_day_that_does_not_come() -> None:
    assert call("next", "-", stdin="0 0 30 2 * task").stdout == "line 1: task\n  never\n"


def status(*args: str, env: dict[str, str] | None = None) -> Any:
    result = call("status", *args, "--json", env=env)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_status_shows_what_the_database_knows_and_the_file_says(dsn: str, path: str) -> None:
    know(dsn, "nightly", at("00:00"), at("04:00"))
    know(dsn, "gone", at("00:00"))

    found = {row["identifier"]: row for row in status(path, "-c", dsn)}

    assert set(found) == {"nightly", "gone", "local", "often"}
    assert found["nightly"]["known_since"] == "2026-01-05T00:00:00+00:00"
    assert found["nightly"]["last"] == "2026-01-05T04:00:00+00:00"
    assert found["nightly"]["next"].endswith("T04:00:00+00:00")
    assert (found["gone"]["last"], found["gone"]["next"]) == (None, None)
    assert (found["often"]["known_since"], found["often"]["last"]) == (None, None)
    assert found["often"]["next"] is not None


def test_status_prints_a_table_for_people(
    dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    know(dsn, "nightly", at("00:00"), at("04:00"))

    result = call("status", env={"DATABASE_URL": dsn})

    assert result.stdout.splitlines() == [
        "identifier  known since           last run              next run",
        "nightly     2026-01-05 00:00:00Z  2026-01-05 04:00:00Z  -",
    ]


def test_status_uses_the_crontab_of_the_working_directory(
    dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crontab").write_text("* * * * * task")

    assert [row["identifier"] for row in status("-c", dsn)] == ["task"]


def test_status_tells_why_there_is_none(empty_dsn: str, path: str) -> None:
    result = call("status", path, "-c", empty_dsn)

    assert result.exit_code == 1
    assert "`graphile-worker-py migrate` installs it" in result.stderr
    assert call("status", path, "-c", "host").exit_code == 2


def test_check_says_which_line_never_runs_and_writes_periods_as_a_crontab_does() -> None:
    crontab = "0 0 31 2 * task ?id=never\n0 0 1 2 * task ?fill=86400s\n"
    shown = call("check", "-", stdin=crontab).stdout
    first, second = shown.split("line 2: ")
    assert "  never runs    there is no such day\n" in first
    assert "never runs" not in second
    assert "  fill          1d\n" in second


@pytest.mark.parametrize(
    ("fill", "shown"), [("1w2d3h4m5s", "1w2d3h4m5s"), ("93600s", "1d2h"), ("90s", "1m30s")]
)
def test_a_period_is_shown_in_the_largest_units(fill: str, shown: str) -> None:
    result = call("check", "-", stdin=f"0 0 * * * task ?fill={fill}\n")
    assert f"  fill          {shown}\n" in result.stdout
