"""What a person and a machine read of a worker."""

import logging
from typing import Any

import pytest

from graphile_worker_py import WorkerUtils, run_once, task


@task
async def fail(payload: Any) -> None:
    raise ValueError("boom")


async def records_of(dsn: str, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Run a job that fails; what was logged."""
    async with WorkerUtils(dsn) as utils:
        await utils.add_job("fail", {"secret": "do not show"}, max_attempts=2)
    with caplog.at_level(logging.INFO, logger="graphile_worker_py"):
        await run_once(dsn, tasks=[fail])
    return [record for record in caplog.records if hasattr(record, "job_id")]


async def test_a_failure_is_an_error_with_the_fields_of_its_job(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    (record,) = await records_of(dsn, caplog)
    assert record.levelno == logging.ERROR
    assert "attempt 1 of 2): boom" in record.getMessage()
    fields = vars(record)
    assert (fields["task_identifier"], fields["attempt"]) == ("fail", 1)
    assert fields["worker_id"].startswith("worker-")
    assert fields["pool_id"].startswith("otpool-")


async def test_a_traceback_starts_in_the_task(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    (record,) = await records_of(dsn, caplog)
    assert record.exc_info is not None
    traceback = record.exc_info[2]
    assert traceback is not None
    assert traceback.tb_frame.f_code.co_name == "fail"


async def test_no_payload_is_logged(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    await records_of(dsn, caplog)
    assert "do not show" not in caplog.text
