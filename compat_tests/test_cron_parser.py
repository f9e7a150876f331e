"""Crontabs mean to us what they mean to the real Node package: parser and matcher, compared.

`GRAPHILE_WORKER_PY_CRON_SAMPLES=20` multiplies the samples: 40,000 lines, 200,000 minutes.
"""

import json
import os
import random
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from croniter import croniter

from compat_tests.cron_lines import Lines
from graphile_worker_py.cli.cron import cron
from graphile_worker_py.cron.crontab import parse_crontab
from graphile_worker_py.cron.items import CronItem, ParsedCronItem, parse_cron_item
from graphile_worker_py.cron.match import Timetable
from graphile_worker_py.cron.pattern import Pattern
from graphile_worker_py.errors import CrontabError
from tests.support.node import LATEST, Node

SAMPLES = int(os.environ.get("GRAPHILE_WORKER_PY_CRON_SAMPLES", "1"))
LINES = 2_000 * SAMPLES
FILES = 300 * SAMPLES
PATTERNS = 100 * SAMPLES
MINUTES_PER_PATTERN = 100
SEED = 20_240_229

pytestmark = pytest.mark.timeout(20 * max(1, SAMPLES))

# For each input what the parser returns, and what the matchers answer when one field is varied
# around a minute that should match.
NODE_PARSE = """
import { readFileSync, writeFileSync } from "node:fs";
import { parseCrontab } from "graphile-worker";
const [input, output] = process.argv.slice(2);
const range = (first, last) => Array.from({ length: last - first + 1 }, (_, i) => first + i);
const answers = JSON.parse(readFileSync(input, "utf8")).map(({ text, bases }) => {
  let items;
  try {
    items = parseCrontab(text);
  } catch (error) {
    return { error: String(error.message) };
  }
  return {
    items: items.map(({ task, identifier, options, payload, match }, index) => {
      const base = bases[index];
      const found = base && {
        minutes: range(0, 59).filter((min) => match({ ...base, min })),
        hours: range(0, 23).filter((hour) => match({ ...base, hour })),
        months: range(1, 12).filter((month) => match({ ...base, month })),
        days: range(1, 31).map((date) =>
          range(0, 6).filter((dow) => match({ ...base, date, dow })),
        ),
      };
      return { task, identifier, options, payload, found };
    }),
  };
});
writeFileSync(output, JSON.stringify(answers));
"""

NODE_MATCH = """
import { readFileSync, writeFileSync } from "node:fs";
import { parseCronItem } from "graphile-worker";
const [input, output] = process.argv.slice(2);
const answers = JSON.parse(readFileSync(input, "utf8")).map(({ pattern, minutes }) => {
  const { match } = parseCronItem({ task: "task", match: pattern });
  return minutes.filter((ms) => {
    const time = new Date(ms);
    return match({
      min: time.getUTCMinutes(),
      hour: time.getUTCHours(),
      date: time.getUTCDate(),
      month: time.getUTCMonth() + 1,
      dow: time.getUTCDay(),
    });
  });
});
writeFileSync(output, JSON.stringify(answers));
"""


NODE_PATTERNS = """
import { readFileSync, writeFileSync } from "node:fs";
import { parseCronItem } from "graphile-worker";
const [input, output] = process.argv.slice(2);
const answers = JSON.parse(readFileSync(input, "utf8")).map((match) => {
  try {
    parseCronItem({ task: "task", match });
    return true;
  } catch (error) {
    return false;
  }
});
writeFileSync(output, JSON.stringify(answers));
"""


def ask_node(node: Node, source: str, questions: Iterable[Any], directory: Path) -> list[Any]:
    asked, answered = directory / "questions.json", directory / "answers.json"
    asked.write_text(json.dumps(list(questions)))
    node.run(LATEST, source, str(asked), str(answered), timeout=300)
    answers: list[Any] = json.loads(answered.read_text())
    return answers


def parsed(text: str) -> list[ParsedCronItem] | CrontabError:
    try:
        return parse_crontab(text)
    except CrontabError as error:
        return error


def base(item: ParsedCronItem) -> dict[str, int]:
    """A minute that should match."""
    assert isinstance(item.match, Pattern)
    return {
        "min": item.match.minutes[0],
        "hour": item.match.hours[0],
        "date": item.match.dates[0],
        "month": item.match.months[0],
        "dow": item.match.dows[0],
    }


def as_json(item: ParsedCronItem, directory: Path, text: str) -> dict[str, Any]:
    """The item as `cron check --json` prints it."""
    path = directory / "crontab"
    path.write_text(text, newline="")
    result = CliRunner().invoke(cron, ["check", str(path), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    printed: list[dict[str, Any]] = json.loads(result.stdout)
    return next(each for each in printed if each["identifier"] == item.identifier)


def days(fields: dict[str, Any]) -> list[list[int]]:
    """For each day of the month, the days of the week on which the pattern matches."""
    by_date, by_dow = len(fields["dates"]) < 31, len(fields["dows"]) < 7
    return [
        [
            dow
            for dow in range(7)
            if not (by_date or by_dow)
            or (by_date and date in fields["dates"])
            or (by_dow and dow in fields["dows"])
        ]
        for date in range(1, 32)
    ]


def compare(texts: list[str], node: Node, directory: Path) -> tuple[int, int]:
    """Let both parse the texts; the numbers of accepted and refused ones."""
    ours = [parsed(text) for text in texts]
    questions = [
        {"text": text, "bases": [base(item) for item in mine] if isinstance(mine, list) else []}
        for text, mine in zip(texts, ours, strict=True)
    ]
    accepted = refused = 0
    for text, mine, its in zip(
        texts, ours, ask_node(node, NODE_PARSE, questions, directory), strict=True
    ):
        if isinstance(mine, CrontabError):
            assert "error" in its, f"refused by us alone: {text!r}: {mine}"
            # Node stops at the first fault, and looks for duplicate identifiers last.
            line = re.search(r"line '?([0-9]+)'?", its["error"])
            faults = [each.line for each in mine.errors if each.column is not None]
            assert faults[:1] == ([] if line is None else [int(line[1])]), (text, its["error"])
            refused += 1
            continue
        assert "error" not in its, f"accepted by us alone: {text!r}: {its['error']}"
        assert len(mine) == len(its["items"]), repr(text)
        for item, other in zip(mine, its["items"], strict=True):
            fields = as_json(item, directory, text)
            found = other.pop("found")
            assert {name: fields[name] for name in other} == other, repr(text)
            assert {
                "minutes": fields["minutes"],
                "hours": fields["hours"],
                "months": fields["months"],
                "days": days(fields),
            } == found, repr(text)
            accepted += 1
    return accepted, refused


def test_random_lines_are_accepted_and_read_as_by_node(node: Node, tmp_path: Path) -> None:
    lines = Lines(SEED)

    accepted, refused = compare([lines.line() for _ in range(LINES)], node, tmp_path)

    # Neither side of the comparison may run empty.
    assert accepted > LINES / 4
    assert refused > LINES / 4


def test_random_files_are_accepted_and_read_as_by_node(node: Node, tmp_path: Path) -> None:
    lines = Lines(SEED + 1)

    accepted, refused = compare([lines.file() for _ in range(FILES)], node, tmp_path)

    assert accepted > FILES / 20
    assert refused > FILES / 20


def test_what_is_for_python_alone_is_a_comment_to_node(node: Node, tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "examples" / "crontab").read_text()

    (answer,) = ask_node(node, NODE_PARSE, [{"text": text, "bases": []}], tmp_path)

    theirs = [item["identifier"] for item in answer["items"]]
    assert [item.identifier for item in parse_crontab(text)] == [*theirs, "morning_mail"]


def test_random_patterns_from_code_are_accepted_as_by_node(node: Node, tmp_path: Path) -> None:
    lines = Lines(SEED + 4)
    patterns = [lines.any_pattern() for _ in range(LINES)]

    answers = ask_node(node, NODE_PATTERNS, patterns, tmp_path)

    ours = [is_accepted(pattern) for pattern in patterns]
    assert dict(zip(patterns, ours, strict=True)) == dict(zip(patterns, answers, strict=True))
    assert LINES / 4 < sum(ours) < LINES * 3 / 4


def is_accepted(pattern: str) -> bool:
    try:
        parse_cron_item(CronItem("task", pattern))
    except CrontabError:
        return False
    return True


def test_random_patterns_match_the_minutes_that_they_match_in_node_and_croniter(
    node: Node, tmp_path: Path
) -> None:
    lines = Lines(SEED + 2)
    pick = random.Random(SEED + 3)
    first = datetime(1999, 1, 1, tzinfo=UTC)
    questions: list[dict[str, Any]] = []
    for _ in range(PATTERNS):
        minutes = [
            first + timedelta(minutes=pick.randrange(110 * 365 * 24 * 60))
            for _ in range(MINUTES_PER_PATTERN)
        ]
        questions.append({"pattern": lines.pattern(), "minutes": minutes})
    asked = (
        {**each, "minutes": [int(minute.timestamp() * 1000) for minute in each["minutes"]]}
        for each in questions
    )
    answers = ask_node(node, NODE_MATCH, asked, tmp_path)

    matched = 0
    for question, answer in zip(questions, answers, strict=True):
        item = parse_cron_item(CronItem("task", question["pattern"]))
        timetable = Timetable([item])
        mine = [minute for minute in question["minutes"] if timetable.due(minute)]
        assert [int(minute.timestamp() * 1000) for minute in mine] == answer, question["pattern"]
        normal = normalised(item)
        croniters = [minute for minute in question["minutes"] if croniter.match(normal, minute)]
        assert croniters == mine, question["pattern"]
        matched += len(mine)
    assert matched > PATTERNS


def normalised(item: ParsedCronItem) -> str:
    """The pattern for croniter, which takes a full range for a restriction: that is a `*`."""
    assert isinstance(item.match, Pattern)
    pattern = item.match
    fields = (pattern.minutes, pattern.hours, pattern.dates, pattern.months, pattern.dows)
    return " ".join(
        "*" if len(values) == count else ",".join(str(value) for value in values)
        for values, count in zip(fields, (60, 24, 31, 12, 7), strict=True)
    )
