"""The code blocks of Markdown pages: found, and run.

A block is three backticks with a language. Comments of the form `<!-- test: … -->` on the lines
right above it say how it is run; readers do not see them:

- `continues`: it goes on from the Python block before it, with its names.
- `inside utils`: it is the body of `async with WorkerUtils() as utils`, and continues as above.
  Besides it knows what the package exports, `asyncio`, and `datetime`, `timedelta` and `UTC`.
- `runs TASK PAYLOAD`: when it has run, a job of this task is added; it must succeed.
- `fails TASK PAYLOAD`: the same; the job must fail, or be discarded. What its error says counts as
  printed.
- `until "TEXT"`: it is a program that does not end by itself. It must print TEXT, and end well
  when it is interrupted. `until 4 "TEXT"`: it must print it this many times.
- `file NAME`: it is not run, but put into a file that later blocks use.
- `with OLD = NEW`: OLD is replaced before it is run.
- `sql STATEMENT`: this is done in the database before.
- `app`: the application of `app.py` and its crontab are there.
- `output`: the lines of this text must have been printed by the block before it, in this order.
  Numbers and ids may differ; a line that is only … stands for any lines.
- `printed COMMAND`: as `output`, for what this shell command prints, however it ends.
- `exits CODE`: the shell block ends with this exit code.
- `by MODULE`: not here, but by this module of tests it is run. Its commands are checked here.
- `skip: REASON`: it is not run. Its `graphile-worker-py` commands are still checked.

The blocks of a page are run in their order, in one directory and on one database.

How to run a block and how to check one that is not run stand together, so that no language is
forgotten.
"""

import ast
import asyncio
import configparser
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import click
import psycopg
import yaml
from click.testing import CliRunner

import graphile_worker_py
from graphile_worker_py import Events, Task, WorkerUtils, parse_crontab, run_once
from graphile_worker_py.cli.main import main as command_line
from graphile_worker_py.events import JobDiscarded, JobError, JobSuccess
from tests.support.app import GRACE, make_app
from tests.support.processes import Processes, clean_environment

_FENCE = re.compile(r"^( *)(`{3,})([^\n`]*)\n(.*?)^\1\2$", re.MULTILINE | re.DOTALL)
_DIRECTIVE = re.compile(r"^ *<!-- test: (.*?) -->$")
_DIRECTIVES = "continues|inside|runs|fails|until|file|with|sql|app|by|output|printed|exits|skip:"
_PATIENCE = 15.0
_TESTS = Path(__file__).parent.parent
_PROGRAM = "graphile-worker-py"
_INSTRUCTIONS = ("FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "ARG", "CMD", "ENTRYPOINT")


@dataclass(frozen=True, slots=True)
class Block:
    """A code block, and what its page says on how to run it."""

    page: Path
    line: int
    language: str
    text: str
    directives: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    def all(self, name: str) -> list[str]:
        """What the directives of this name say."""
        return [value for directive, value in self.directives if directive == name]

    def one(self, name: str) -> str | None:
        """What the directive of this name says; None if there is none."""
        said = self.all(name)
        assert len(said) < 2, f"{self}: {name} stands there twice"
        return said[0] if said else None


def blocks_of(page: Path) -> Iterator[Block]:
    """The code blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        before = text[: found.start()]
        directives = []
        for above in reversed(before.splitlines()):
            directive = _DIRECTIVE.match(above)
            if directive is None:
                break
            name, _, value = directive[1].partition(" ")
            assert re.fullmatch(_DIRECTIVES, name), f"{page.name}: {name!r} is no directive"
            directives.append((name, value.strip()))
        yield Block(
            page=page,
            line=before.count("\n") + 2,
            language=found[3].strip(),
            text=textwrap.dedent(found[4]),
            directives=tuple(reversed(directives)),
        )


class PageRun:
    """Runs the blocks of one page.

    Args:
        directory: Where they run, and where their files lie.
        dsn: The database that `DATABASE_URL` names.
        processes: Starts those that do not end by themselves.
    """

    def __init__(self, directory: Path, dsn: str, processes: Processes) -> None:
        self._directory = directory
        self._dsn = dsn
        self._processes = processes
        self._names: dict[str, Any] = {}
        self._printed = ""

    def run(self, block: Block) -> None:
        """Run a block, or check it in another way.

        Raises:
            AssertionError: It does not do what its page says.
        """
        text = block.text
        for replacement in block.all("with"):
            old, equals, new = replacement.partition(" = ")
            assert equals, f"{block}: with OLD = NEW"
            assert old in text, f"{block}: there is no {old!r} in it"
            text = text.replace(old, new)
        name = block.one("file")
        if name is not None:
            (self._directory / name).write_text(text, encoding="utf-8")
        for statement in block.all("sql"):
            with psycopg.connect(self._dsn, autocommit=True) as conn:
                conn.execute(statement.encode())
        if block.one("app") is not None and not (self._directory / "myapp").exists():
            make_app(self._directory)
        module = block.one("by")
        if module is not None:
            tests = (_TESTS / f"{module}.py").read_text(encoding="utf-8")
            assert block.page.name in tests, f"{block}: {module} does not read this page"
        if block.one("skip:") is not None or module is not None or name is not None:
            _check(block, text)
            return
        match block.language:
            case "python":
                self._run_python(block, text)
            case "sh":
                self._run_shell(block, text)
            case "sql":
                with psycopg.connect(self._dsn, autocommit=True) as conn:
                    conn.execute(text.encode())
            case "text":
                command = block.one("printed")
                if command is not None:
                    self._printed = self._shell(f"exec 2>&1\n{command}").stdout
                else:
                    assert block.one("output") is not None, f"{block}: nobody looks at it"
                _assert_printed(block, self._printed)
            case _:
                _check(block, text)

    def _run_python(self, block: Block, text: str) -> None:
        if block.one("until") is not None:
            program = self._directory / "program.py"
            program.write_text(text, encoding="utf-8")
            self._run_until(block, [sys.executable, str(program)])
            return
        inside = block.one("inside")
        if inside is None and block.one("continues") is None:
            self._names = {"__name__": "__main__"}
        if inside is not None:
            assert inside == "utils", f"{block}: there is no inside {inside}"
            self._names = _KNOWN_INSIDE | self._names
            text = _INSIDE_UTILS + textwrap.indent(text, " " * 8) + "asyncio.run(__main())\n"
        # So that the line numbers of a traceback are those of the page.
        above = block.line - 1 - (0 if inside is None else _INSIDE_UTILS.count("\n"))
        tree = ast.increment_lineno(ast.parse(text), above)
        printed = StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            exec(compile(tree, str(block.page), "exec"), self._names)
            self._run_jobs(block)
        self._printed = printed.getvalue()

    def _run_jobs(self, block: Block) -> None:
        tasks = {
            value.identifier: value for value in self._names.values() if isinstance(value, Task)
        }
        for directive, succeeds in (("runs", True), ("fails", False)):
            for said in block.all(directive):
                identifier, _, payload = said.partition(" ")
                assert identifier in tasks, f"{block}: it has no task {identifier}"
                error = asyncio.run(self._outcome_of(tasks[identifier], json.loads(payload)))
                assert (error is None) is succeeds, f"{block}: {identifier} ended with {error!r}"
                if error is not None:
                    print(error)

    async def _outcome_of(self, task: Task[Any], payload: Any) -> BaseException | None:
        outcomes: dict[int, BaseException | None] = {}
        events = Events()
        events.subscribe(JobSuccess, lambda event: outcomes.update({event.job.id: None}))
        events.subscribe(JobError, lambda event: outcomes.update({event.job.id: event.error}))
        events.subscribe(JobDiscarded, lambda event: outcomes.update({event.job.id: event.error}))
        async with WorkerUtils(self._dsn) as utils:
            job = await utils.add_job(task.identifier, payload)
        await run_once(self._dsn, tasks=[task], events=events)
        return outcomes[job.id]

    def _run_shell(self, block: Block, text: str) -> None:
        if block.one("until") is not None:
            self._run_until(block, ["bash", "-c", f"exec 2>&1; {text}"])
            return
        commands = [shlex.split(line) for line in text.splitlines()]
        if all(words[:1] == [_PROGRAM] and words[1:2] != ["--tasks"] for words in commands):
            self._run_commands(block, [words[1:] for words in commands])
            return
        done = self._shell(f"exec 2>&1\n{text}")
        self._printed = done.stdout
        expected = int(block.one("exits") or 0)
        assert done.returncode == expected, f"{block}: exit code {done.returncode}\n{done.stdout}"

    def _shell(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            check=False,
            text=True,
            cwd=self._directory,
            env=self._environment(),
            timeout=_PATIENCE,
        )

    def _run_commands(self, block: Block, commands: list[list[str]]) -> None:
        """Run commands that end by themselves in this process: a page has many of them."""
        self._printed = ""
        for words in commands:
            result = CliRunner().invoke(command_line, words, prog_name=_PROGRAM)
            self._printed += result.output
            expected = int(block.one("exits") or 0) if words is commands[-1] else 0
            message = f"{block}: {shlex.join(words)}: exit code {result.exit_code}\n{result.output}"
            assert result.exit_code == expected, message

    def _run_until(self, block: Block, command: list[str]) -> None:
        count, text = _times(block.one("until") or "")
        process = self._processes.start(command, env=self._environment(), cwd=self._directory)
        deadline = time.monotonic() + _PATIENCE
        while (process.stdout + process.stderr).count(text) < count:
            assert process.returncode is None, f"{block}: {process.stdout}{process.stderr}"
            assert time.monotonic() < deadline, f"{block}: {process.stdout}{process.stderr}"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(_PATIENCE)
        self._printed = process.stdout + process.stderr
        assert code == 0, f"{block}: exit code {code}\n{self._printed}"

    def _environment(self) -> dict[str, str]:
        programs = Path(sys.executable).parent
        return {
            **clean_environment(),
            "DATABASE_URL": self._dsn,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONWARNINGS": "error",
            # A job that is running when a worker is interrupted is not to cost seconds.
            GRACE: "0.1",
        }


_KNOWN_INSIDE = {
    **{name: getattr(graphile_worker_py, name) for name in graphile_worker_py.__all__},
    "UTC": UTC,
    "asyncio": asyncio,
    "datetime": datetime,
    "timedelta": timedelta,
}
_INSIDE_UTILS = "async def __main():\n    async with WorkerUtils() as utils:\n"


def _times(said: str) -> tuple[int, str]:
    """How often a text must be printed, and the text."""
    count, quote, text = said.partition('"')
    return int(count or 1), json.loads(quote + text)


def _check(block: Block, text: str) -> None:
    """Check a block that is not run: that it can be read, and that its commands exist."""
    match block.language:
        case "python":
            ast.parse(text)
        case "toml":
            tomllib.loads(text)
        case "json":
            json.loads(text)
        case "yaml":
            for document in yaml.safe_load_all(text):
                _check_manifest(document)
        case "ini":
            unit = configparser.ConfigParser(strict=False, interpolation=None)
            unit.optionxform = str  # type: ignore[assignment,method-assign]
            unit.read_string(text)
            _check_unit(unit)
        case "dockerfile":
            _check_dockerfile(text)
        case "crontab":
            parse_crontab(text)
        case "sh":
            check_commands(text)
        case "sql" | "js" | "text":
            pass
        case _:
            raise AssertionError(f"{block}: nobody knows how to check {block.language!r}")


def _check_manifest(part: Any) -> None:
    """Check the commands somewhere in a YAML document."""
    match part:
        case dict():
            for value in part.values():
                _check_manifest(value)
        case [str(program), *arguments] if program == _PROGRAM:
            _check_command(arguments)
        case list():
            for value in part:
                _check_manifest(value)
        case str():
            check_commands(part)


def _check_unit(unit: configparser.ConfigParser) -> None:
    for section in unit.values():
        for name, value in section.items():
            if name.startswith("Exec"):
                program, *arguments = shlex.split(value)
                if Path(program).name == _PROGRAM:
                    _check_command(arguments)


def _check_dockerfile(text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        instruction, _, rest = line.partition(" ")
        assert instruction in _INSTRUCTIONS, f"{instruction!r} is no instruction of a Dockerfile"
        if instruction in ("CMD", "ENTRYPOINT"):
            _check_manifest(json.loads(rest))


def check_commands(text: str) -> None:
    """Check the `graphile-worker-py` commands in a shell script."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set(";&|<>()"):
                words.append(word)
                continue
            while words and re.fullmatch(r"\w+=.*", words[0]):
                del words[0]
            if words and Path(words[0]).name == _PROGRAM:
                _check_command(words[1:])
            words = []


def _check_command(words: list[str]) -> None:
    """Check that the command line takes these words, without doing what they say."""
    command: click.Command = command_line
    rest = [*words]
    while isinstance(command, click.Group):
        context = click.Context(command)
        name = rest.pop(0) if rest and rest[0] in command.list_commands(context) else None
        if name is None:
            assert command is command_line, f"there is no command {' '.join(words)}"
            name = "run"
        found = command.get_command(context, name)
        assert found is not None
        command = found
    try:
        command.make_context(_PROGRAM, rest).close()
    except click.UsageError as error:
        message = f"{_PROGRAM} {' '.join(words)}: {error.format_message()}"
        raise AssertionError(message) from error


def _assert_printed(block: Block, printed: str) -> None:
    """Check that the lines of a block were printed, in their order."""
    left = [_masked(line) for line in printed.splitlines()]
    for line in block.text.splitlines():
        wanted = _masked(line)
        if wanted in ("", "…"):
            continue
        assert wanted in left, f"{block}: {line!r} was not printed; this was:\n{printed}"
        del left[: left.index(wanted) + 1]


def _masked(line: str) -> str:
    line = re.sub(r"\b(pool|worker)-[0-9a-f]{18}\b", r"\1-…", line)
    line = re.sub(r"\d+([.:-]\d+)*", "0", line)
    return " ".join(line.split())
