"""The demonstration with pages: sample tasks that succeed, fail or take long, and a load switch."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI, Request, Response

from graphile_worker_py import aio
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.runner import Runner
from graphile_worker_py.tasks.context import JobContext
from graphile_worker_py.tasks.sync_context import SyncJobContext
from graphile_worker_py.tasks.task import task
from graphile_worker_py.web.access import LOOPBACK, TokenDoor
from graphile_worker_py.web.app import build
from graphile_worker_py.web.context import Operator
from graphile_worker_py.web.pages.rendering import link, render
from graphile_worker_py.web.serving import link_of, serve
from graphile_worker_py.web.settings import Settings
from graphile_worker_py.worker_utils import WorkerUtils

CRONTAB: Final = "* * * * * nightly_report ?fill=10m {period: 'minute'}"
HOST: Final = "127.0.0.1"
CUSTOMERS: Final = ("Ada", "Grace", "Edsger", "Barbara", "Tony")


class Load:
    """How many jobs a second are added.

    Attributes:
        rate: Jobs a second; 0 adds none.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    async def run(self, utils: WorkerUtils) -> None:
        """Add jobs until cancelled."""
        while True:
            if self.rate:
                await utils.add_jobs([_some_job() for _ in range(max(1, round(self.rate / 4)))])
            await asyncio.sleep(0.25 if self.rate >= 4 or not self.rate else 1 / self.rate)


def _some_job() -> JobSpec:
    customer = random.choice(CUSTOMERS)  # noqa: S311  # a demonstration
    match random.choices(range(4), weights=(8, 3, 1, 2))[0]:  # noqa: S311
        case 0:
            return JobSpec("send_receipt", {"customer": customer, "api_token": "not shown"})
        case 1:
            return JobSpec("call_flaky_api", {"customer": customer}, max_attempts=3)
        case 2:
            return JobSpec("render_report", {"customer": customer, "pages": 40}, priority=5)
    return JobSpec("book", {"customer": customer}, queue_name="ledger")


@task
async def send_receipt(_payload: dict[str, Any]) -> None:
    """Succeed soon."""
    await asyncio.sleep(random.uniform(0.05, 0.4))  # noqa: S311


@task
async def call_flaky_api(payload: dict[str, Any]) -> None:
    """Fail every other time."""
    await asyncio.sleep(0.2)
    if random.random() < 0.5:  # noqa: S311
        raise ConnectionError(f"api.example.com did not answer for {payload['customer']}")


@task(keep_result=True)
async def render_report(payload: dict[str, Any], ctx: JobContext) -> dict[str, int]:
    """Take long, and report how far it is."""
    pages = payload["pages"]
    for page in range(pages):
        ctx.progress(page, total=pages, message=f"page {page} of {pages}")
        await asyncio.sleep(0.25)
    return {"pages": pages}


@task
def book(_payload: dict[str, Any], ctx: SyncJobContext) -> None:
    """Run one after the other, in the queue of the ledger."""
    ctx.abort_event.wait(0.5)


@task
async def nightly_report(_payload: dict[str, Any]) -> None:
    """Run by the crontab."""


TASKS: Final = [send_receipt, call_flaky_api, render_report, book, nightly_report]


async def demonstrate_pages(
    dsn: str, *, port: int, show: Callable[[str], None], rate: float = 2.0
) -> None:
    """Serve the pages of an empty database on which sample jobs run, until stopped.

    Args:
        dsn: The database.
        port: Port to listen on; 0 takes a free one.
        show: Called with the address to open.
        rate: Jobs a second that are added at first.
    """
    load = Load(rate)
    door = TokenDoor()
    settings = Settings(links={"Load": "/demo"})
    app = build(dsn, settings, door=door, hosts=LOOPBACK)
    _add_switch(app, load)
    crew = aio.Crew()
    async with (
        WorkerUtils(dsn) as utils,
        Runner(dsn, tasks=TASKS, crontab=CRONTAB, concurrent_jobs=8, history="all"),
    ):
        crew.start(load.run(utils), name="add jobs")
        try:
            await serve(app, host=HOST, port=port, ready=lambda at: show(link_of(door, HOST, at)))
        finally:
            await crew.cancel(patience=1.0)


def _add_switch(app: FastAPI, load: Load) -> None:
    @app.get("/demo", include_in_schema=False)
    async def switch(request: Request, access: Operator) -> Response:
        return render(request, "demo.html", page="", title="Load", access=access, rate=load.rate)

    @app.post("/demo", include_in_schema=False)
    async def turn(request: Request, _access: Operator) -> Response:
        form = await request.form()
        load.rate = {"off": 0.0, "low": 2.0, "high": 200.0}.get(str(form.get("rate")), 0.0)
        return Response(status_code=303, headers={"Location": link(request, "demo")})
