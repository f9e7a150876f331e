"""Tasks from a directory, or from a single file."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from graphile_worker_py import ConfigurationError, Task, WorkerUtils, run_once
from graphile_worker_py.loading.directory import load_tasks, watch_tasks
from tests.support.eventually import eventually

DECORATED = """
from graphile_worker_py import task

@task
def {name}(payload):
    return {result!r}
"""
PLAIN = "def task(payload):\n    return {result!r}\n"
SCRIPT = "#!/bin/sh\nexit 0\n"


def write(directory: Path, files: Mapping[str, str]) -> Path:
    """Write files below a directory; those that begin with `#!` are executable."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if text.startswith("#!") else 0o644)
    return directory


def decorated(name: str, result: Any = None) -> str:
    return DECORATED.format(name=name, result=result)


def plain(result: Any = None) -> str:
    return PLAIN.format(result=result)


def messages(caplog: pytest.LogCaptureFixture, level: int) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno == level)


# Names.


def test_decorated_functions_go_by_their_own_identifiers(tmp_path: Path) -> None:
    two = decorated("first", 1) + '@task("mail/second")\ndef second(payload):\n    return 2\n'
    write(tmp_path, {"mail/all.py": two})
    tasks = load_tasks(tmp_path)
    assert {name: task({}) for name, task in tasks.items()} == {"first": 1, "mail/second": 2}


@pytest.mark.parametrize("name", ["task", "run", "default"])
def test_a_function_that_stands_for_its_file_is_named_after_the_path(
    tmp_path: Path, name: str
) -> None:
    write(tmp_path, {"reports/2024/send-out_1.py": f"def {name}(payload): return payload\n"})
    tasks = load_tasks(tmp_path)
    assert list(tasks) == ["reports/2024/send-out_1"]
    assert tasks["reports/2024/send-out_1"]("x") == "x"


def test_a_decorated_function_that_stands_for_its_file_keeps_its_settings(tmp_path: Path) -> None:
    source = decorated("other") + "@task(timeout=7)\nasync def run(payload, ctx): pass\n"
    write(tmp_path, {"slow.py": source})
    tasks = load_tasks(tmp_path)
    assert list(tasks) == ["other", "slow"]
    assert tasks["slow"].timeout == 7
    assert tasks["slow"].is_async


def test_undecorated_functions_beside_tasks_are_no_tasks(tmp_path: Path) -> None:
    write(tmp_path, {"mail.py": decorated("mail") + "def run(): ...\ndef task_count(): ...\n"})
    assert list(load_tasks(tmp_path)) == ["mail"]


def test_what_begins_with_underscore_or_dot_is_left_out(tmp_path: Path) -> None:
    broken = "raise AssertionError('loaded')\n"
    write(
        tmp_path,
        {
            "mail.py": plain(),
            "_lib.py": broken,
            ".hidden.py": broken,
            "_drafts/mail.py": broken,
            ".git/mail.py": broken,
            "__pycache__/mail.py": broken,
            "_script": SCRIPT,
            "sub/__init__.py": "",
            "sub/mail.py": plain(),
        },
    )
    assert list(load_tasks(tmp_path, strict=True)) == ["mail", "sub/mail"]


def test_names_that_can_not_be_identifiers_are_skipped_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    names = ["send mail.py", "späť.py", "a b/mail.py", "dir.ext/mail.py"]
    write(tmp_path, {"mail.py": plain(), **dict.fromkeys(names, plain())})
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    assert list(load_tasks(tmp_path)) == ["mail"]
    told = messages(caplog, logging.INFO)
    for skipped in ("send mail.py", "späť.py", "a b", "dir.ext", "pipe.py", "gone.py"):
        assert f"Skipped {tmp_path / skipped}: " in told


def test_the_whole_extension_decides_what_a_file_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, {"mail.py": plain(), "mail.test.py": plain(), "README.md": "", "x.sh": "exit"})
    assert list(load_tasks(tmp_path)) == ["mail"]
    told = messages(caplog, logging.WARNING)
    assert all(name in told for name in ("mail.test.py", "README.md", "x.sh"))


def test_links_to_files_are_followed_and_links_to_directories_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    elsewhere = write(tmp_path / "elsewhere", {"real.py": plain("linked"), "job": SCRIPT})
    tasks = write(tmp_path / "tasks", {"mail.py": plain()})
    (tasks / "by_link.py").symlink_to(elsewhere / "real.py")
    (tasks / "script").symlink_to(elsewhere / "job")
    (tasks / "folder").symlink_to(elsewhere)
    loaded = load_tasks(tasks)
    assert list(loaded) == ["by_link", "mail", "script"]
    assert loaded["by_link"]({}) == "linked"
    assert f"Skipped {tasks / 'folder'}: links to directories" in messages(caplog, logging.INFO)


# Twins.


@pytest.mark.parametrize("other", ["mail.sh", "mail"])
def test_two_files_named_after_one_task_are_an_error(tmp_path: Path, other: str) -> None:
    write(tmp_path, {"mail.py": plain(), other: SCRIPT})
    with pytest.raises(ConfigurationError) as caught:
        load_tasks(tmp_path)
    assert str(tmp_path / "mail.py") in str(caught.value)
    assert str(tmp_path / other) in str(caught.value)


def test_two_tasks_of_one_identifier_are_an_error_that_names_both_places(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": decorated("mail"), "sub/b.py": "\n" + decorated("mail")})
    with pytest.raises(ConfigurationError) as caught:
        load_tasks(tmp_path)
    assert f"two tasks are named 'mail': {tmp_path / 'a.py'}:4" in str(caught.value)
    assert f"{tmp_path / 'sub/b.py'}:5" in str(caught.value)


def test_a_python_file_that_is_executable_is_a_python_file(tmp_path: Path) -> None:
    write(tmp_path, {"mail.py": "#!/usr/bin/env python3\n" + plain("python")})
    assert load_tasks(tmp_path)["mail"]({}) == "python"


# What does not load.


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        ("import json\n\njson.loads('nope')\n", 3, "JSONDecodeError"),
        ("def task(payload):\n    return 1 +\n", 2, "SyntaxError"),
        ("import no_such_module\n" + plain(), 1, "ModuleNotFoundError"),
        ("\nimport sys\nsys.exit('usage: …')\n", 3, "SystemExit"),
        (decorated("mail") + "@task\ndef items(payload):\n    yield 1\n", 7, "ConfigurationError"),
    ],
)
def test_a_file_that_does_not_load_is_logged_with_its_line_and_the_others_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str, line: int, error: str
) -> None:
    write(tmp_path, {"broken.py": source, "works.py": plain()})
    assert list(load_tasks(tmp_path)) == ["works"]
    told = messages(caplog, logging.ERROR)
    assert f"could not load {tmp_path / 'broken.py'}, line {line}: {error}: " in told
    assert caplog.records[-1].exc_info is not None


def test_an_identifier_that_is_too_long_is_the_trouble_of_its_file_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deep = "/".join(["directory-name-of-some-length"] * 5)
    write(tmp_path, {f"{deep}/mail.py": plain(), f"{deep}/script": SCRIPT, "works.py": plain()})
    assert list(load_tasks(tmp_path)) == ["works"]
    assert messages(caplog, logging.ERROR).count("at most 128 are allowed") == 2


def test_strict_loading_raises_what_does_not_load(tmp_path: Path) -> None:
    write(tmp_path, {"broken.py": "1 / 0\n", "works.py": plain()})
    with pytest.raises(
        ConfigurationError, match=r"broken\.py, line 1: ZeroDivisionError"
    ) as caught:
        load_tasks(tmp_path, strict=True)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_if_nothing_loads_the_error_tells_why(tmp_path: Path) -> None:
    write(tmp_path, {"broken.py": "1 / 0\n"})
    with pytest.raises(ConfigurationError, match=r"no task in .*\n- could not load .*line 1: Zero"):
        load_tasks(tmp_path)


def test_a_package_that_does_not_load_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"__init__.py": "1 / 0\n", "works.py": plain()})
    with pytest.raises(ConfigurationError, match=r"__init__\.py, line 1: ZeroDivisionError"):
        load_tasks(tmp_path)


def test_a_file_without_tasks_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = "from subprocess import run\nfrom graphile_worker_py import task\nclass default: ...\n"
    write(tmp_path, {"helpers.py": source, "works.py": plain()})
    assert list(load_tasks(tmp_path, strict=True)) == ["works"]
    assert f"Skipped {tmp_path / 'helpers.py'}: there is no @task" in messages(
        caplog, logging.WARNING
    )


@pytest.mark.parametrize("path", ["missing", "file.txt", "file.txt/inside", "x" * 300])
def test_what_is_neither_a_directory_nor_a_file_of_tasks_is_an_error(
    tmp_path: Path, path: str
) -> None:
    write(tmp_path, {"file.txt": ""})
    with pytest.raises(ConfigurationError, match=str(tmp_path / path)):
        load_tasks(tmp_path / path)


def test_a_directory_without_tasks_is_an_error_that_tells_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no task in .*@task functions .*executable"):
        load_tasks(tmp_path)


# Imports.


def test_files_import_helpers_and_each_other_by_relative_imports(tmp_path: Path) -> None:
    hello = "from ._lib import greet\nfrom .sub._deep import NAME\n"
    hello += "def run(payload): return greet(NAME)\n"
    loud = "from .. import _lib, hello\n"
    loud += "def run(payload): return hello.run(payload) + _lib.MARK\n"
    write(
        tmp_path,
        {
            "_lib.py": "MARK = '!'\ndef greet(name): return f'hello {name}'\n",
            "sub/_deep.py": "NAME = 'you'\n",
            "hello.py": hello,
            "sub/loud.py": loud,
        },
    )
    tasks = load_tasks(tmp_path, strict=True)
    assert {name: task({}) for name, task in tasks.items()} == {
        "hello": "hello you",
        "sub/loud": "hello you!",
    }


def test_a_task_that_other_files_import_is_loaded_once(tmp_path: Path) -> None:
    first = "from .z_mail import mail\n" + decorated("first")
    write(tmp_path, {"a_first.py": first, "z_mail.py": decorated("mail", 1)})
    assert list(load_tasks(tmp_path, strict=True)) == ["first", "mail"]


def test_the_decorated_function_of_another_file_does_not_stand_for_this_one(tmp_path: Path) -> None:
    first = "from .z_mail import run\n" + decorated("first")
    entry = "from graphile_worker_py import task\n@task\ndef run(payload): return 'z'\n"
    write(tmp_path, {"a_first.py": first, "z_mail.py": entry})
    assert list(load_tasks(tmp_path, strict=True)) == ["first", "z_mail"]


@pytest.mark.parametrize("init", [{}, {"mail/__init__.py": "from . import send\n"}])
def test_a_file_may_have_the_name_of_a_directory(tmp_path: Path, init: dict[str, str]) -> None:
    both = {
        "_lib.py": "N = 1",
        "mail.py": "from ._lib import N\n" + plain("file"),
        "mail/send.py": plain("nested"),
    }
    write(tmp_path, {**both, **init})
    tasks = load_tasks(tmp_path, strict=True)
    assert {name: task({}) for name, task in tasks.items()} == {
        "mail": "file",
        "mail/send": "nested",
    }


def test_files_named_like_modules_of_others_do_not_replace_them(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"json.py": plain(1), "send.py": "import json\n" + plain(2)})
    two = write(tmp_path / "two", {"json.py": plain(3)})
    import json

    path_before = list(sys.path)
    tasks, others = load_tasks(one, strict=True), load_tasks(two, strict=True)
    assert (tasks["json"]({}), others["json"]({})) == (1, 3)
    assert sys.modules["json"] is json
    assert "send" not in sys.modules
    assert sys.path == path_before


def test_a_directory_is_read_anew_by_each_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    helper = {"_lib.py": "X = 1\n", "mail.py": "from ._lib import X\ndef run(p): return X\n"}
    first = load_tasks(write(tmp_path, helper))
    # Of the same size, and within the same second, so that compiled files look fresh.
    write(tmp_path, {"_lib.py": "X = 2\n"})
    second = load_tasks(tmp_path)
    assert (first["mail"]({}), second["mail"]({})) == (1, 2)


def test_a_package_that_python_finds_is_imported_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path,
        {
            "shop_of_tests/__init__.py": "NAME = 'shop'\n",
            "shop_of_tests/tasks/__init__.py": "",
            "shop_of_tests/tasks/mail.py": "from .. import NAME\ndef run(p): return NAME\n",
        },
    )
    monkeypatch.syspath_prepend(tmp_path)
    tasks = load_tasks(tmp_path / "shop_of_tests" / "tasks", strict=True)
    from shop_of_tests.tasks import mail  # type: ignore[import-not-found]

    assert tasks["mail"].function is mail.run
    assert tasks["mail"]({}) == "shop"


# A single file.


@pytest.mark.parametrize("name", ["jobs.py", "my jobs.v2.py"])
def test_a_single_file_gives_all_its_tasks(tmp_path: Path, name: str) -> None:
    write(tmp_path, {name: decorated("a") + "@task\ndef b(payload): ...\n", "broken.py": "1 / 0"})
    assert list(load_tasks(str(tmp_path / name))) == ["a", "b"]


def test_a_single_file_without_decorated_functions_is_named_after_itself(tmp_path: Path) -> None:
    write(
        tmp_path, {"_lib.py": "X = 5\n", "mail.py": "from ._lib import X\ndef run(p): return X\n"}
    )
    assert load_tasks(tmp_path / "mail.py")["mail"]({}) == 5


def test_a_single_executable_is_a_task(tmp_path: Path) -> None:
    write(tmp_path, {"mail.sh": SCRIPT})
    assert list(load_tasks(tmp_path / "mail.sh")) == ["mail"]


def test_a_relative_path_is_one_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"tasks/mail.py": plain(), "tasks/script": SCRIPT})
    monkeypatch.chdir(tmp_path)
    assert list(load_tasks("tasks")) == ["mail", "script"]


# Watching.


Versions = AsyncGenerator[dict[str, Task[Any]], None]


async def following(watched: Versions) -> dict[str, Task[Any]]:
    async with asyncio.timeout(10):
        return await anext(watched)


def watching(path: Path) -> aclosing[Versions]:
    return aclosing(watch_tasks(path, interval=0.01))


async def test_watching_gives_the_tasks_now_and_after_each_change(tmp_path: Path) -> None:
    write(tmp_path, {"mail.py": plain("old")})
    async with watching(tmp_path) as watched:
        assert (await following(watched))["mail"]({}) == "old"
        write(tmp_path, {"mail.py": plain("changed")})
        assert (await following(watched))["mail"]({}) == "changed"
        write(tmp_path, {"sub/more.py": plain()})
        assert list(await following(watched)) == ["mail", "sub/more"]
        (tmp_path / "mail.py").unlink()
        assert list(await following(watched)) == ["sub/more"]
        write(tmp_path, {"_lib.py": "", "script": SCRIPT})
        assert "script" in await following(watched)


async def test_watching_sees_changes_of_helpers_in_a_package_that_python_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = "from ._lib import X\ndef run(p): return X\n"
    package = tmp_path / "watched_of_tests"
    write(package, {"__init__.py": "", "_lib.py": "X = 1\n", "mail.py": mail})
    monkeypatch.syspath_prepend(tmp_path)
    async with watching(package) as watched:
        assert (await following(watched))["mail"]({}) == 1
        write(package, {"_lib.py": "X = 22\n"})
        assert (await following(watched))["mail"]({}) == 22


async def test_watching_a_single_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"mail.py": plain("old")}) / "mail.py"
    async with watching(path) as watched:
        await following(watched)
        write(tmp_path, {"mail.py": plain("changed")})
        assert (await following(watched))["mail"]({}) == "changed"


async def test_while_a_change_does_not_load_nothing_new_is_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, {"mail.py": plain("old"), "other.py": plain()})
    async with watching(tmp_path) as watched:
        await following(watched)
        waiting = asyncio.create_task(following(watched))
        write(tmp_path, {"mail.py": "def task(payload: oh no"})
        await eventually(lambda: "mail.py, line 1: SyntaxError" in caplog.text)
        assert not waiting.done()
        # It loads, but no worker would start with it.
        unfinished = "import msgspec\nclass Mail(msgspec.Struct):\n    to: 'Address'\n"
        write(tmp_path, {"mail.py": f"{unfinished}def task(payload: Mail): ...\n"})
        await eventually(lambda: "task 'mail' can't be of type Mail" in caplog.text)
        assert not waiting.done()
        write(tmp_path, {"mail.py": plain("mended")})
        assert (await waiting)["mail"]({}) == "mended"


async def test_watching_nothing_is_an_error(tmp_path: Path) -> None:
    async with watching(tmp_path / "missing") as watched:
        with pytest.raises(ConfigurationError, match="missing"):
            await following(watched)


# In a worker.


async def test_a_worker_runs_the_tasks_of_a_directory(dsn: str, tmp_path: Path) -> None:
    mail = "async def task(payload, ctx):\n    await ctx.add_job('sub/note', payload)\n"
    note = "from pathlib import Path\n\n"
    note += "def run(payload):\n    Path(payload['to']).write_text(payload['text'])\n"
    write(tmp_path, {"tasks/mail.py": mail, "tasks/sub/note.py": note})
    async with WorkerUtils(dsn) as utils:
        await utils.add_job("mail", {"to": str(tmp_path / "out"), "text": "done"})
    await run_once(dsn, task_directory=tmp_path / "tasks", no_handle_signals=True)
    assert (tmp_path / "out").read_text() == "done"
