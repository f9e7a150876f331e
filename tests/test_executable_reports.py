"""What executables report by `GRAPHILE_WORKER_PROGRESS_FD`."""

import logging
from pathlib import Path

import pytest

from graphile_worker_py import Runner, WorkerUtils, load_tasks, run_migrations
from tests.support.eventually import eventually

pytestmark = pytest.mark.any_server

FD = '>&"$GRAPHILE_WORKER_PROGRESS_FD"'


def script(directory: Path, *lines: str) -> None:
    """Write an executable for the shell."""
    path = directory / "report"
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    path.chmod(0o755)


async def test_what_it_reports_is_seen_and_its_result_kept(dsn: str, tmp_path: Path) -> None:
    await run_migrations(dsn, side_schema=True)
    go_on = tmp_path / "go-on.flag"
    script(
        tmp_path,
        f'echo \'{{"progress": 40, "total": 100, "message": "page 40"}}\' {FD}',
        f"while [ ! -e {go_on} ]; do sleep 0.02; done",
        f"echo '{{\"result\": 1}}' {FD}",
        f"printf '%s' '{{\"result\": {{\"pages\": 100}}}}' {FD}",
    )
    async with WorkerUtils(dsn) as utils, Runner(dsn, tasks=load_tasks(tmp_path)):
        handle = utils.handle(await utils.add_job("report", awaited=True))

        async def reported() -> bool:
            state = await handle.state()
            seen = state and (state.progress, state.total, state.message)
            return seen == (40, 100, "page 40")

        await eventually(reported)
        go_on.touch()
        assert await handle.result(10) == {"pages": 100}


async def test_what_is_no_report_is_logged_and_fails_no_job(
    dsn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await run_migrations(dsn, side_schema=True)
    script(
        tmp_path,
        f"echo hello {FD}",
        f"echo '[1]' {FD}",
        f'echo \'{{"progress": "x"}}\' {FD}',
        f'echo \'{{"progress": 5, "total": 4}}\' {FD}',
        f"head -c 3000000 /dev/zero | tr '\\0' a {FD}",
        f"echo {FD}",
        f"echo '{{\"result\": 7}}' {FD}",
    )
    with caplog.at_level(logging.WARNING):
        async with WorkerUtils(dsn) as utils, Runner(dsn, tasks=load_tasks(tmp_path)):
            handle = utils.handle(await utils.add_job("report", awaited=True))
            assert await handle.result(15) == 7
    told = [each.getMessage() for each in caplog.records if "Not a report" in each.getMessage()]
    assert "'hello'" in told[0]
    assert "'[1]'" in told[1]
    assert "not 'x'" in told[2]
    assert "above its total" in told[3]
    assert "a line of more than 2097152 bytes" in told[4]
