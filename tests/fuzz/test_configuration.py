"""Whatever stands in files, variables and flags: it is taken, or refused as a wrong setting."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from graphile_worker_py import ConfigurationError, Runner, WorkerOptions, WorkerUtils
from graphile_worker_py.cli.main import main as command_line
from graphile_worker_py.config import read_settings, runner_values
from graphile_worker_py.options import OPTIONS, WORKER_OPTION_NAMES
from graphile_worker_py.postgres.connecting import checked_conninfo
from tests.fuzz.strategies import any_text, as_toml, storable_text, toml_values

pytestmark = pytest.mark.any_server

names = st.sampled_from(sorted(OPTIONS)) | st.sampled_from(
    ["local_queue", "local_queue.refetch_delay", "tool", "tool.graphile-worker", "connection.env"]
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A TOML document with options of ours, right or wrong, and some keys of nobody's."""
    pairs = draw(st.dictionaries(names | storable_text, toml_values, max_size=6))
    lines = []
    for name, value in pairs.items():
        dotted = name in OPTIONS or draw(st.booleans())
        key = ".".join(as_toml(part) for part in name.split(".")) if dotted else as_toml(name)
        lines.append(f"{key} = {as_toml(value)}")
    return "\n".join(lines)


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str | None:
    """Why a call refuses its values, None if it takes them. No error but this one is a good one."""
    try:
        call(*args, **kwargs)
    except ConfigurationError as error:
        return str(error)
    return None


def read(**sources: Any) -> None:
    """Read all settings, and what of them a runner would be given."""
    runner_values(read_settings({}, **{"environment": {}, **sources}))


@given(documents())
@example("schema = '\\ud800'")
@example("poll_interval = 1" + "0" * 400)
@example("concurrent_jobs = 1" + "0" * 5000)
@example("local_queue = 5")
@example("hooks = [[[]]]")
@example("connection = {}")
@example("connection = {env = 1}")
@example("connection = {env = 'A', b = 1}")
@example("a = " + "[" * 2000 + "]" * 2000)
@example("[tool]")
def test_a_configuration_file_is_taken_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "graphile_worker.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    told = refusal(read, file=path)
    # What does not fit together may come from several places.
    assert told is None or str(path) in told or "interval" in told or "given" in told, told


@given(documents(), st.sampled_from(["", "[tool.graphile-worker]\n", "[tool]\n"]))
@example("tool = 5", "")
@example("tool = ['graphile-worker']", "")
@example("tool = 'graphile-worker'", "")
@example("graphile-worker = 5", "[tool]\n")
@example("graphile-worker = ['x']", "[tool]\n")
def test_a_project_file_is_taken_or_refused(tmp_path: Path, text: str, header: str) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(header + text, encoding="utf-8")
    told = refusal(read, file=path)
    assert told is None or str(path) in told or "interval" in told or "given" in told, told
    # It may also be found, where nobody names it.
    refusal(read, directory=tmp_path)


@given(st.binary() | any_text.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_file_of_garbage_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "graphile_worker.toml"
    path.write_bytes(data)
    refusal(read, file=path)


@given(
    st.dictionaries(
        st.sampled_from(sorted(OPTIONS)),
        storable_text | st.sampled_from(["1", "-1", "1e400", "nan", "inf", "1" * 5000, "yes", ","]),
        max_size=6,
    )
)
def test_environment_variables_are_taken_or_refused(values: dict[str, str]) -> None:
    environment = {OPTIONS[name].variable: text for name, text in values.items()}
    told = refusal(read, directory=Path("/nowhere"), environment=environment)
    named = [name for name in values if told and (OPTIONS[name].variable in told or name in told)]
    assert told is None or named or "must be given" in told, told


python_values = st.none() | toml_values | any_text | st.binary(max_size=4) | st.just(object())


@given(st.dictionaries(st.sampled_from(sorted(WORKER_OPTION_NAMES)), python_values, max_size=4))
@example({"schema": "\ud800"})
@example({"poll_interval": 10**400})
@example({"worker_id": "\ud800"})
@example({"listen_connection_string": "\ud800"})
@example({"listen_connection_string": "host=\0"})
def test_options_in_code_are_taken_or_refused(options: dict[str, Any]) -> None:
    told = refusal(WorkerOptions, **options)
    assert told is None or any(name in told for name in options), told
    refusal(Runner, "", tasks={"work": print}, **options)


@given(any_text, any_text)
@example("\0", "s")
@example("", "\ud800")
@example("host=\ud800", "s")
def test_sources_and_schemas_are_taken_or_refused(dsn: str, schema: str) -> None:
    refusal(WorkerUtils, dsn, schema=schema)
    refusal(checked_conninfo, dsn)


# Those that start something, or look about in the network.
ELSEWHERE = {"demo", "postgres", "bench", "run", "web"}
NOT_TRIED = {"connection", "url", "port", "processes", "watch", "help", "config_file"}
COMMANDS = sorted(set(command_line.list_commands(click.Context(command_line))) - ELSEWHERE)


@pytest.mark.parametrize("name", [*COMMANDS, "run"])
@given(data=st.data())
def test_a_command_takes_its_flags_or_tells_what_is_wrong(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.chdir(tmp_path)
    # Nobody listens there, which is found out at once.
    monkeypatch.setenv("DATABASE_URL", "host=/nonexistent")
    command = command_line.get_command(click.Context(command_line), name)
    assert command is not None
    words = [name]
    if isinstance(command, click.Group):
        words.append(data.draw(st.sampled_from(sorted(command.commands))))
        command = command.commands[words[-1]]
    for parameter in command.params:
        if parameter.name in NOT_TRIED or not data.draw(st.booleans()):
            continue
        if isinstance(parameter, click.Option):
            words.append(data.draw(st.sampled_from(parameter.opts)))
            if parameter.is_flag:
                continue
        words.append(data.draw(storable_text | st.sampled_from(["-", "1", "{}", "+1s", "now"])))
    done = CliRunner().invoke(command_line, words, input=data.draw(storable_text))
    told = f"{words}: {done.output}{done.exception!r}"
    assert done.exception is None or isinstance(done.exception, SystemExit), told
    assert done.exit_code in (0, 1, 2), told
    assert done.exit_code == 0 or done.output.strip(), told


def test_the_examples_are_toml() -> None:
    value = {"a b": [1, "\x7f\u2028'\"\\", {"c": True}], "d": 1e308}
    assert tomllib.loads(f"x = {as_toml(value)}") == {"x": value}
