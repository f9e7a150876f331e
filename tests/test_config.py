"""Options from flags, environment and a file: which one wins, and what is refused."""

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from graphile_worker_py import (
    ConfigurationError,
    LocalQueueOptions,
    RefetchDelay,
    Runner,
    WorkerUtils,
    task,
)
from graphile_worker_py.cli.config import code_reference_table, reference_table
from graphile_worker_py.cli.main import main
from graphile_worker_py.cli.shared_options import values_of_flags
from graphile_worker_py.config import Origin, Setting, read_settings, runner_values
from graphile_worker_py.options import OPTIONS
from graphile_worker_py.options.declaring import Kind
from graphile_worker_py.runner_options import CODE_OPTIONS, RunnerOptions
from tests.support.processes import Process, Processes
from tests.support.running import Jobs

ROOT = Path(__file__).parent.parent
OWN = "graphile_worker.toml"
ENVIRONMENT = {"GRAPHILE_WORKER_POLL_INTERVAL": "3"}


def settings_of(
    folder: Path,
    text: str | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    name: str = OWN,
) -> dict[str, Setting]:
    """The settings in a folder with this file."""
    if text is not None:
        (folder / name).write_text(text, encoding="utf-8")
    return read_settings(flags or {}, directory=folder, environment=environment or {})


def refused(folder: Path, text: str, **given: Any) -> str:
    """What is said about this file, without the folder in which it lies."""
    with pytest.raises(ConfigurationError) as caught:
        settings_of(folder, text, **given)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("flag", "environment", "file", "expected"),
    [
        (None, None, None, Setting(value=2.0)),
        (None, None, "4", Setting(value=4, origin=Origin.FILE, place=OWN)),
        (
            None,
            "3",
            "4",
            Setting(value=3.0, origin=Origin.ENVIRONMENT, place="GRAPHILE_WORKER_POLL_INTERVAL"),
        ),
        (1.5, "3", "4", Setting(value=1.5, origin=Origin.FLAG)),
        (2.0, "3", "4", Setting(value=2.0, origin=Origin.FLAG)),
        (None, "", "4", Setting(value=4, origin=Origin.FILE, place=OWN)),
    ],
    ids=["default", "file", "environment", "flag", "flag with the default", "empty variable"],
)
def test_the_strongest_source_wins(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flag: float | None,
    environment: str | None,
    file: str | None,
    expected: Setting,
) -> None:
    monkeypatch.chdir(tmp_path)
    if file is not None:
        Path(OWN).write_text(f"poll_interval = {file}", encoding="utf-8")
    variables = {} if environment is None else {"GRAPHILE_WORKER_POLL_INTERVAL": environment}
    found = read_settings({"poll_interval": flag}, environment=variables)
    assert found["poll_interval"] == expected


def test_false_and_zero_are_values_and_win(tmp_path: Path) -> None:
    found = settings_of(
        tmp_path,
        "prepared_statements = true\ngraceful_shutdown_abort_timeout = 9\nforbidden_flags = ['a']",
        flags={"prepared_statements": False, "forbidden_flags": []},
        environment={"GRAPHILE_WORKER_GRACEFUL_SHUTDOWN_ABORT_TIMEOUT": "0"},
    )
    assert found["prepared_statements"].value is False
    assert found["graceful_shutdown_abort_timeout"].value == 0
    assert found["forbidden_flags"].value == []


SAMPLES: dict[str, tuple[str, str, Any]] = {
    "connection": ("'host=a'", "host=a", "host=a"),
    "tasks": ("'app.tasks'", "app.tasks", "app.tasks"),
    "log_format": ("'json'", "json", "json"),
    "log_level": ("'debug'", "debug", "debug"),
    "history": ("'all'", "all", "all"),
    "recording_durability": ("'relaxed'", "relaxed", "relaxed"),
}
SAMPLE_OF_KIND: dict[Kind, tuple[str, str, Any]] = {
    Kind.TEXT: ("'other'", "other", "other"),
    Kind.PATH: ("'/srv/it'", "/srv/it", "/srv/it"),
    Kind.WHOLE: ("7", "7", 7),
    Kind.SECONDS: ("500.5", "500.5", 500.5),
    Kind.NUMBER: ("0.5", "0.5", 0.5),
    Kind.DURATION: ("'2w'", "2w", "2w"),
    Kind.YES_NO: ("false", "No", False),
    Kind.TEXTS: ("['a', 'b']", "a, b", ["a", "b"]),
    Kind.TABLE: ("{a = {tasks = ['b']}}", '{"a": {"tasks": ["b"]}}', {"a": {"tasks": ["b"]}}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_can_be_set_in_a_file_and_in_the_environment(
    tmp_path: Path, name: str
) -> None:
    in_file, in_environment, value = SAMPLES.get(name, SAMPLE_OF_KIND[OPTIONS[name].kind])
    assert settings_of(tmp_path, f"{name} = {in_file}")[name].value == value
    (tmp_path / OWN).unlink()
    environment = {OPTIONS[name].variable: in_environment}
    found = settings_of(tmp_path, environment=environment)
    assert found[name] == Setting(
        value=value, origin=Origin.ENVIRONMENT, place=OPTIONS[name].variable
    )


def test_every_option_of_a_worker_pool_reaches_the_runner(tmp_path: Path) -> None:
    values = runner_values(
        settings_of(
            tmp_path,
            """
            schema = "jobs"
            concurrent_jobs = 4
            poll_interval = 3
            max_pool_size = 5
            prepared_statements = false
            forbidden_flags = ["eu"]
            complete_job_batch_delay = 0.1
            fail_job_batch_delay = 0.2
            min_reset_locked_interval = 10
            max_reset_locked_interval = 20
            graceful_shutdown_abort_timeout = 1
            listen_connection_string = "host=direct"
            listen_echo_interval = 0
            watchdog_timeout = 120
            use_node_time = true
            get_queue_name_batch_delay = 0.3
            [local_queue]
            size = 50
            ttl = 60
            [local_queue.refetch_delay]
            duration = 0.5
            threshold = 3
            max_abort_threshold = 9
            """,
        )
    )
    assert values == {
        "schema": "jobs",
        "concurrent_jobs": 4,
        "poll_interval": 3,
        "max_pool_size": 5,
        "prepared_statements": False,
        "forbidden_flags": ["eu"],
        "complete_job_batch_delay": 0.1,
        "fail_job_batch_delay": 0.2,
        "min_reset_locked_interval": 10,
        "max_reset_locked_interval": 20,
        "graceful_shutdown_abort_timeout": 1,
        "listen_connection_string": "host=direct",
        "listen_echo_interval": 0,
        "watchdog_timeout": 120,
        "use_node_time": True,
        "get_queue_name_batch_delay": 0.3,
        "local_queue": LocalQueueOptions(
            size=50,
            ttl=60,
            refetch_delay=RefetchDelay(duration=0.5, threshold=3, max_abort_threshold=9),
        ),
    }


def test_defaults_are_left_to_the_runner(tmp_path: Path) -> None:
    assert runner_values(settings_of(tmp_path)) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "concurent_jobs = 4",
            f"{OWN}: unknown key 'concurent_jobs'; did you mean 'concurrent_jobs'?",
        ),
        ("pollInterval = 4", f"{OWN}: unknown key 'pollInterval'; did you mean 'poll_interval'?"),
        ("ttl = 4", f"{OWN}: unknown key 'ttl'; did you mean 'local_queue.ttl'?"),
        (
            "[local_queue]\nsise = 4",
            f"{OWN}: unknown key 'local_queue.sise'; did you mean 'local_queue.size'?",
        ),
        ("local_queue = 4", f"{OWN}: local_queue must be a table, not 4"),
        (
            "concurrent_jobs = 'four'",
            f"{OWN}: concurrent_jobs must be a whole number of at least 1, not 'four'",
        ),
        (
            "concurrent_jobs = 4.5",
            f"{OWN}: concurrent_jobs must be a whole number of at least 1, not 4.5",
        ),
        ("poll_interval = true", f"{OWN}: poll_interval must be seconds, above 0, not True"),
        ("poll_interval = nan", f"{OWN}: poll_interval must be seconds, above 0, not nan"),
        (
            "prepared_statements = 'no'",
            f"{OWN}: prepared_statements must be true or false, without quotes, not 'no'",
        ),
        (
            "[pools.mail]\nconcurrent_jobs = 'two'",
            f"{OWN}: pools.mail: concurrent_jobs must be a whole number of at least 1, not 'two'",
        ),
        ("[pools.mail]\nqueue = 'a'", f"{OWN}: pools.mail: unknown key 'queue'; keys are tasks, "),
        ("[pools]\nmail = 5", f"{OWN}: pools.mail: it must be Pool(...), or a table of its "),
        ("forbidden_flags = 'eu'", f"{OWN}: forbidden_flags must be a list of strings, not 'eu'"),
        ("hooks = [1]", f"{OWN}: hooks[0] must be a string, not 1"),
        ("schema = ''", f"{OWN}: schema '' is not a name that PostgreSQL can hold"),
        ("connection = 5", f"{OWN}: connection must be a string that is not empty, not 5"),
        (
            "connection = {envv = 'A'}",
            f'{OWN}: connection must be a string or {{env = "VARIABLE"}}, not a table with envv',
        ),
        ("connection = {env = ''}", f"{OWN}: connection must be a string or {{env = "),
        (
            "connection = {env = 'A'}",
            f"{OWN}: connection is to be read from the environment variable A, which is not set",
        ),
        ("task_directory = ''", f"{OWN}: task_directory must be a path, not ''"),
        (
            'crontab_file = "a\\u0000"',
            f"{OWN}: crontab_file must be a path, not 'a\\x00'",
        ),
        (
            'forbidden_flags = ["eu", "\\u0000"]',
            f"{OWN}: forbidden_flags[1] '\\x00' contains U+0000",
        ),
        ("concurrent_jobs = 100001", f"{OWN}: concurrent_jobs must be at most 100000, not 100001"),
        ("processes = 1001", f"{OWN}: processes must be at most 1000, not 1001"),
        ("log_level = 'loud'", f"{OWN}: log_level must be one of debug, info, warning, error, not"),
        (
            "tasks = 'a'\ntask_directory = 'b'",
            f"{OWN}: tasks and task_directory exclude each other",
        ),
        ("poll_interval = ", f"{OWN} is not TOML: Invalid value (at end of document)"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_file_and_key(
    tmp_path: Path, text: str, message: str
) -> None:
    assert refused(tmp_path, text).startswith(message)


def test_an_unknown_key_that_resembles_none_is_told_which_there_are(tmp_path: Path) -> None:
    message = refused(tmp_path, "xyz = 4")
    assert message.startswith(f"{OWN}: unknown key 'xyz'; keys are connection, tasks, ")
    assert message.endswith(", ".join(OPTIONS))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CONCURRENT_JOBS", "four", "concurrent_jobs must be a whole number of at least 1, not"),
        ("CONCURRENT_JOBS", "4.5", "concurrent_jobs must be a whole number of at least 1, not"),
        ("POLL_INTERVAL", "2s", "poll_interval must be seconds, above 0, not '2s'"),
        (
            "PREPARED_STATEMENTS",
            "maybe",
            "prepared_statements must be one of true, yes, on, 1, false, no, off, 0, not 'maybe'",
        ),
        ("POOLS", '{"mail": {"queue": 5}}', "pools.mail: unknown key 'queue'; keys are tasks, "),
        ("LOCAL_QUEUE_SIZE", "0", "local_queue.size must be a whole number of at least 1 or -1"),
        ("SCHEMA", "x" * 64, "schema 'xxxx"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named_with_the_variable(
    tmp_path: Path, name: str, value: str, message: str
) -> None:
    variable = f"GRAPHILE_WORKER_{name}"
    with pytest.raises(ConfigurationError, match=f"^{variable}: {re.escape(message)}"):
        settings_of(tmp_path, environment={variable: value})


def test_a_wrong_value_is_refused_even_if_a_stronger_source_has_another(tmp_path: Path) -> None:
    message = refused(tmp_path, "poll_interval = -1", flags={"poll_interval": 1.0})
    assert message == f"{OWN}: poll_interval must be seconds, above 0, not -1"


def test_variables_of_others_with_our_prefix_are_no_mistake(tmp_path: Path) -> None:
    theirs = {
        "GRAPHILE_WORKER_PAYLOAD_FORMAT": "json",
        "GRAPHILE_WORKER_TASK_IDENTIFIER": "x",
        "GRAPHILE_WORKER_JOB_ID": "1",
        "GRAPHILE_WORKER_JOB_KEY": "k",
        "GRAPHILE_WORKER_ANYTHING": "y",
    }
    assert settings_of(tmp_path, environment=theirs) == settings_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "local_queue.refetch_delay.threshold = 3",
            (
                "local_queue.refetch_delay.duration must be given where "
                "local_queue.refetch_delay.threshold is"
            ),
        ),
        (
            "max_reset_locked_interval = 5",
            "max_reset_locked_interval 5 is below min_reset_locked_interval 480.0",
        ),
        (
            "local_queue = {size = 5, refetch_delay = {duration = 3}}",
            "local_queue.refetch_delay.duration 3 is above poll_interval 2.0",
        ),
    ],
)
def test_values_that_do_not_fit_together_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        runner_values(settings_of(tmp_path, text))


def test_tasks_of_a_stronger_source_replace_a_directory_of_a_weaker_one(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    found = settings_of(tmp_path, "task_directory = 'jobs'", flags={"tasks": "app"})
    assert found["tasks"].value == "app"
    assert found["task_directory"] == Setting(value=None)
    found = settings_of(tmp_path, "tasks = 'app'", flags={"task_directory": "jobs"})
    assert found["tasks"] == Setting(value=None)
    assert found["task_directory"].value == "jobs"


def test_folder_and_crontab_of_the_usual_name_are_defaults(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "crontab").touch()
    found = settings_of(tmp_path)
    assert found["task_directory"] == Setting(value="tasks")
    assert found["crontab_file"] == Setting(value="crontab")
    found = settings_of(tmp_path, "tasks = 'app'")
    assert found["task_directory"] == Setting(value=None)


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    file = tmp_path / OWN
    file.write_text("poll_interval = 3.0", encoding="utf-8-sig")
    found = read_settings({}, directory=tmp_path, environment={})
    assert found["poll_interval"].value == 3.0


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    file = folder / "any name.toml"
    file.write_text("task_directory = 'jobs'\ncrontab_file = '/srv/crontab'", encoding="utf-8")
    found = read_settings({}, file=file, directory=tmp_path, environment={})
    assert found["task_directory"].value == str(folder / "jobs")
    assert found["crontab_file"].value == "/srv/crontab"
    assert found["crontab_file"].place == str(file)


def test_the_table_of_pyproject_is_read_if_there_is_no_file_of_our_own(tmp_path: Path) -> None:
    project = "[project]\nname = 'x'\n[tool.graphile-worker]\nconcurrent_jobs = 3"
    found = settings_of(tmp_path, project, name="pyproject.toml")
    assert found["concurrent_jobs"].value == 3
    assert found["concurrent_jobs"].place.endswith("pyproject.toml")
    found = settings_of(tmp_path, "poll_interval = 5")
    assert (found["poll_interval"].value, found["concurrent_jobs"].value) == (5, 1)


def test_a_pyproject_without_our_table_is_nobodys_fault_unless_it_is_asked_for(
    tmp_path: Path,
) -> None:
    found = settings_of(tmp_path, "[tool.other]\nx = 1", name="pyproject.toml")
    assert {setting.origin for setting in found.values()} == {Origin.DEFAULT}
    with pytest.raises(ConfigurationError, match=r"has no table \[tool\.graphile-worker\]"):
        read_settings({}, file=tmp_path / "pyproject.toml", environment={})


def test_a_file_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"can't read .*none.toml: No such file"):
        read_settings({}, file=tmp_path / "none.toml", environment={})


@pytest.mark.parametrize("name", ["connection", "listen_connection_string"])
def test_a_connection_can_be_read_from_a_variable_that_the_file_names(
    tmp_path: Path, name: str
) -> None:
    text = f"{name} = {{env = 'APP_DATABASE'}}"
    found = settings_of(tmp_path, text, environment={"APP_DATABASE": "host=a"})
    assert found[name].value == "host=a"
    # Whoever names another database need not set it.
    found = settings_of(tmp_path, text, flags={name: "host=b"})
    assert found[name].value == "host=b"


def test_code_reads_no_file_and_only_schema_and_connection_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / OWN).write_text("nonsense", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAPHILE_WORKER_CONCURRENT_JOBS", "nonsense")
    Runner("", tasks=[task("a")(lambda payload: None)])
    monkeypatch.setenv("GRAPHILE_WORKER_SCHEMA", "x" * 64)
    with pytest.raises(ConfigurationError, match="schema 'xxx"):
        Runner("", tasks=[task("a")(lambda payload: None)])
    with pytest.raises(ConfigurationError, match="schema 'xxx"):
        WorkerUtils("")


# The command line.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; of the environment, what configures us is gone."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith("GRAPHILE_WORKER") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    return tmp_path


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment)


def test_show_tells_values_and_where_they_come_from_without_passwords(folder: Path) -> None:
    (folder / OWN).write_text(
        "connection = 'postgresql://me:secret@h/db'\nlocal_queue.size = 9\nhooks = ['a', 'b']\n"
        "listen_connection_string = 'host=direct password=secret'\n",
        encoding="utf-8",
    )
    result = invoke("config", "show", "--schema", "jobs", GRAPHILE_WORKER_LOG_LEVEL="debug")
    assert result.exit_code == 0, result.output
    shown = {tuple(line.split(maxsplit=1)) for line in result.stdout.splitlines()}
    lines = {name: re.sub(r"\s{2,}", " | ", rest) for name, rest in shown}
    assert lines["connection"] == f"postgresql://me:***@h/db | {OWN}"
    assert lines["listen_connection_string"] == f"host=direct password=*** | {OWN}"
    assert lines["schema"] == "jobs | flag"
    assert lines["log_level"] == "debug | GRAPHILE_WORKER_LOG_LEVEL"
    assert lines["local_queue.size"] == f"9 | {OWN}"
    assert lines["hooks"] == f"a, b | {OWN}"
    assert lines["use_node_time"] == "false | default"
    assert lines["tasks"] == "- | default"
    assert set(OPTIONS) == set(lines) - {"option"}


def test_show_prints_json_for_programs(folder: Path) -> None:
    result = invoke(
        "config", "show", "--json", DATABASE_URL="host=h password=secret", **ENVIRONMENT
    )
    shown = json.loads(result.stdout)
    assert list(shown) == list(OPTIONS)
    assert shown["connection"] == {
        "value": "host=h password=***",
        "origin": "environment",
        "place": "DATABASE_URL",
    }
    assert shown["poll_interval"]["value"] == 3
    assert shown["tasks"] == {"value": None, "origin": "default", "place": None}


def test_show_points_to_variables_that_look_misspelt(folder: Path) -> None:
    misspelt = {"GRAPHILE_WORKER_CONCURENT_JOBS": "3", "GRAPHILE_WORKER_JOB_KEY": "x"}
    result = invoke("config", "show", **misspelt)
    assert result.stderr == (
        "Not read: GRAPHILE_WORKER_CONCURENT_JOBS; did you mean GRAPHILE_WORKER_CONCURRENT_JOBS?\n"
    )


def test_run_warns_of_variables_that_look_misspelt(processes: Processes, folder: Path) -> None:
    environment = {
        "DATABASE_URL": "postgresql://127.0.0.1:1/x",
        "GRAPHILE_WORKER_CONCURENT_JOBS": "3",
        "GRAPHILE_WORKER_POL_INTERVAL": "3",
        "GRAPHILE_WORKER_JOB_KEY": "x",
    }
    (folder / "app.py").write_text(TASKS, encoding="utf-8")
    command = [sys.executable, "-m", "graphile_worker_py", "--tasks", "app"]
    process = processes.start(command, cwd=folder, env=environment)
    assert process.wait(timeout=15) == 1
    (warning,) = [line for line in process.stderr.split("\n") if "Not read" in line]
    assert warning.endswith(
        "Not read: GRAPHILE_WORKER_CONCURENT_JOBS (did you mean GRAPHILE_WORKER_CONCURRENT_JOBS?), "
        "GRAPHILE_WORKER_POL_INTERVAL (did you mean GRAPHILE_WORKER_POLL_INTERVAL?)"
    )


@pytest.mark.parametrize(
    "name", ["graphile_worker", "graphile-worker-py", "graphile_worker_py", "graphileworker"]
)
def test_a_misspelt_table_of_the_project_file_is_told(tmp_path: Path, name: str) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text(f"[tool.{name}]\nconcurrent_jobs = 3\n", encoding="utf-8")
    message = rf"{re.escape(str(project))}: \[tool.{name}\] is not read; did you mean \[tool.gra"
    with pytest.raises(ConfigurationError, match=message):
        read_settings({}, directory=tmp_path, environment={})
    with pytest.raises(ConfigurationError, match=message):
        read_settings({}, file=project, environment={})


def test_show_refuses_what_run_would_refuse(folder: Path) -> None:
    (folder / OWN).write_text("max_reset_locked_interval = 5\n", encoding="utf-8")
    result = invoke("config", "show")
    assert result.exit_code == 2
    assert "max_reset_locked_interval 5 is below" in result.stderr


TASKS = """
from graphile_worker_py import task

@task
async def hello(payload):
    print("hello", payload["name"], flush=True)
"""


class Cli:
    """Runs the command in a folder, as a process of its own."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes = processes
        self._folder = folder

    def run(self, *arguments: str, **environment: str) -> Process:
        command = [sys.executable, "-m", "graphile_worker_py", *arguments]
        process = self._processes.start(command, cwd=self._folder, env=environment)
        process.wait(timeout=15)
        return process


def test_a_worker_needs_no_flags_if_all_is_in_the_file(
    dsn: str, processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "hello.py").write_text(TASKS, encoding="utf-8")
    (tmp_path / "recurring").write_text("* * * * * hello\n", encoding="utf-8")
    (tmp_path / OWN).write_text(
        "connection = {env = 'APP_DATABASE'}\ntask_directory = 'app'\n"
        "crontab_file = 'recurring'\nlog_format = 'json'\nforbidden_flags = ['eu']\n",
        encoding="utf-8",
    )
    jobs = Jobs(dsn)
    jobs.add("hello", {"name": "ada"})
    left = jobs.add("hello", {"name": "bob"}, flags=["eu"])
    cli = Cli(processes, tmp_path)
    process = cli.run("--once", APP_DATABASE=dsn)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "hello ada\n"
    assert jobs.ids() == [left]
    assert all(json.loads(line)["level"] == "info" for line in process.stderr.splitlines())
    (tmp_path / "recurring").write_text("nonsense\n", encoding="utf-8")
    process = cli.run("--once", APP_DATABASE=dsn)
    assert process.returncode == 2
    assert "nonsense" in process.stderr


def test_all_commands_read_connection_and_schema_from_the_file(
    empty_dsn: str, processes: Processes, tmp_path: Path
) -> None:
    file = tmp_path / "elsewhere.toml"
    file.write_text(f"connection = '{empty_dsn}'\nschema = 'other one'\n", encoding="utf-8")
    cli = Cli(processes, tmp_path)
    for arguments in (["migrate"], ["add-job", "hello"], ["jobs"], ["cron", "status"]):
        process = cli.run(*arguments, "--config", str(file))
        assert process.returncode == 0, process.stderr
    assert Jobs(empty_dsn).query('select task_identifier from "other one".jobs') == [
        {"task_identifier": "hello"}
    ]


@pytest.mark.parametrize("arguments", [["--once"], ["jobs"], ["config", "show"]])
def test_a_wrong_file_ends_with_2_and_one_line(
    processes: Processes, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / OWN).write_text("concurrent_job = 4\n", encoding="utf-8")
    process = Cli(processes, tmp_path).run(*arguments)
    assert process.returncode == 2
    assert process.stderr == (
        f"Error: {OWN}: unknown key 'concurrent_job'; did you mean 'concurrent_jobs'?\n"
    )


def test_every_flag_of_run_sets_its_option(folder: Path) -> None:
    run = main.get_command(click.Context(main), "run")
    assert run is not None
    not_options = {"config_file", "once", "watch", "schema_only", "help"}
    flags = {flag.name for flag in run.params if isinstance(flag, click.Option)} - not_options
    assert flags == {name.replace(".", "_") for name in OPTIONS if OPTIONS[name].flags}
    for name in (name for name in OPTIONS if OPTIONS[name].flags):
        option = OPTIONS[name]
        _, text, value = SAMPLES.get(name, SAMPLE_OF_KIND[option.kind])
        flag = option.flags[-1].partition("/")[0]
        words, value = ([flag], True) if option.kind is Kind.YES_NO else ([flag, text], value)
        value = ["a, b"] if option.kind is Kind.TEXTS else value
        if name == "pools":
            words, value = [flag, "a:7:b, c*"], {"a": {"concurrent_jobs": 7, "tasks": ["b", "c*"]}}
        with run.make_context("run", [*words]) as context:
            given = {name: context.params[name] for name in context.params.keys() - not_options}
        found = read_settings(values_of_flags(given), directory=folder, environment={})
        assert found[name] == Setting(value=value, origin=Origin.FLAG)


def test_the_help_of_run_states_each_default(folder: Path) -> None:
    text = " ".join(invoke("run", "--help").stdout.split())
    for option in OPTIONS.values():
        if option.flags:
            assert option.doc.replace("`", "") in text
            if option.shown_default and option.kind is not Kind.YES_NO:
                assert f" Default: {option.shown_default}." in text


def test_the_options_of_the_runner_are_those_that_code_may_set() -> None:
    entries = {name.partition(".")[0] for name, option in OPTIONS.items() if option.in_code}
    entries |= {option.name for option in CODE_OPTIONS} | {"local_queue", "history_retention"}
    assert entries == set(RunnerOptions.__annotations__)


def test_the_documented_tables_are_those_of_the_options() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- options -->\n(.*?)\n<!-- end of options -->", page, re.DOTALL)
    assert table == reference_table(), "put in what `graphile-worker-py config reference` prints"
    (table,) = re.findall(
        r"<!-- code options -->\n(.*?)\n<!-- end of code options -->", page, re.DOTALL
    )
    assert table == code_reference_table(CODE_OPTIONS)
