"""Typed payloads: validated, converted to dataclasses, and visible to type checkers.

Run it: DATABASE_URL=postgresql://… python examples/typed_payloads.py
(with `pip install "graphile-worker-py[typed]"`)
"""

import asyncio
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

from graphile_worker_py import JobContext, WorkerUtils, run_once, task


@dataclass
class Line:
    article: str
    price: Decimal
    count: int = 1


@dataclass
class Invoice:
    number: int
    due: date
    lines: list[Line] = field(default_factory=list)


@task
async def send_invoice(payload: Invoice, ctx: JobContext) -> None:
    total = sum(line.price * line.count for line in payload.lines)
    print(f"invoice {payload.number}: {total} until {payload.due:%d.%m.%Y}")
    await ctx.add_job(remind, payload, job_key=f"remind:{payload.number}")


@task
async def remind(payload: Invoice) -> None:
    print(f"reminder of invoice {payload.number}")


async def main() -> None:
    lines = [Line("book", Decimal("19.90"), 2), Line("pen", Decimal("0.80"))]
    async with WorkerUtils() as utils:
        await send_invoice.add_job(utils, Invoice(7, date(2026, 12, 24), lines))
        # SQL and Node can send anything. This job fails, and its error names the place.
        wrong = {"number": 8, "due": "2026-12-24", "lines": [{"article": "ink", "price": []}]}
        job = await utils.add_job("send_invoice", wrong, max_attempts=1)
        await run_once(tasks=[send_invoice, remind])
        failed = await utils.get_job(job.id)
        print(f"invoice 8: {failed and failed.last_error}")


asyncio.run(main())
