"""Tasks that somebody's own code makes of files, beside those that are loaded."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from graphile_worker_py import JobContext, load_tasks, run_once
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server


def statement(file: Path) -> Callable[[Any, JobContext], Awaitable[None]]:
    """A task that runs the SQL of a file."""
    text = file.read_bytes()

    async def run(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            await conn.execute(text)

    return run


async def test_files_of_another_kind_are_made_tasks_in_code(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "plain.py").write_text("def task(payload): ...\n")
    (tmp_path / "tasks" / "rollup.sql").write_text("create table rolled_up as select 1 as n")
    jobs = Jobs(dsn)
    jobs.add("plain")
    jobs.add("rollup")
    tasks: dict[str, Any] = {**load_tasks(tmp_path / "tasks")}
    assert list(tasks) == ["plain"]
    for file in (tmp_path / "tasks").glob("*.sql"):
        tasks[file.stem] = statement(file)
    await run_once(dsn, tasks=tasks)
    assert jobs.ids() == []
    assert jobs.query("select n from rolled_up") == [{"n": 1}]
