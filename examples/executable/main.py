"""Load tasks from a folder: a Perl program, a shell script, and a Python file."""

import asyncio
import logging
import sys
from pathlib import Path

from graphile_worker_py import WorkerUtils, run_once
from graphile_worker_py.events import Events, JobError


def show_failure(event: JobError) -> None:
    """Print the error that is stored as the last error of the job."""
    print("Failed:", event.error)


async def main() -> None:
    """Add a job for each task and run them."""
    async with WorkerUtils() as utils:
        await utils.migrate()
        await utils.add_job("checksum", {"text": "some text"})
        await utils.add_job("checksum", {"test": "a slip"})
        await utils.add_job("whoami", max_attempts=3)
        await utils.add_job("greet", {"name": "Ada"})
    events = Events()
    events.subscribe(JobError, show_failure)
    await run_once(task_directory=Path(__file__).parent / "tasks", events=events)


# Show only the log records of jobs. Records of the worker itself have no job id.
handler = logging.StreamHandler(sys.stdout)
handler.addFilter(lambda record: hasattr(record, "job_id") and record.levelname == "INFO")
logging.basicConfig(
    level=logging.INFO, format="%(task_identifier)s: %(message)s", handlers=[handler]
)
asyncio.run(main())
