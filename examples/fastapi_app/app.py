"""A FastAPI application: an order and its job in one transaction, and progress in the browser.

    pip install "graphile-worker-py[fastapi]" "sqlalchemy[asyncio]" uvicorn
    DATABASE_URL=postgresql://localhost/playground uvicorn app:app
    curl -X POST 'http://127.0.0.1:8000/orders?item=book'

Then open http://127.0.0.1:8000 for a page that follows a job.

In production, run the worker as a separate process (`graphile-worker-py --tasks app`), so that you
can stop and scale it by itself. Then leave `tasks` out.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from graphile_worker_py import JobContext, task
from graphile_worker_py.contrib import fastapi as jobs

DSN = os.environ["DATABASE_URL"]
engine = create_async_engine(DSN.replace("postgresql://", "postgresql+psycopg://", 1))
sessions = async_sessionmaker(engine, expire_on_commit=False)
stream = jobs.JobStream(os.environ.get("SECRET", "only for this example"), results=True)

PAGE = """<!doctype html><title>Orders</title>
<button>Order a book</button> <progress max="1" value="0"></progress> <output></output>
<script>
document.querySelector("button").onclick = async () => {
  const order = await (await fetch("/orders?item=book", {method: "POST"})).json();
  const source = new EventSource(order.progress);
  source.addEventListener("progress", event => {
    document.querySelector("progress").value = JSON.parse(event.data).progress ?? 0;
  });
  source.addEventListener("end", event => {
    source.close();
    document.querySelector("progress").value = 1;
    document.querySelector("output").value = JSON.parse(event.data).result;
  });
};
</script>
"""


class Base(DeclarativeBase):
    """Base of the models."""


class Order(Base):
    """Something that was ordered."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


@task
async def ship(payload: dict[str, int], ctx: JobContext) -> str:
    for step in range(10):
        ctx.progress(step, 10)
        await asyncio.sleep(float(os.environ.get("PACE", "0.5")))
    return f"order {payload['order']} is on its way"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[jobs.State]:
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.create_all)
    async with jobs.lifespan(DSN, tasks=[ship], side_schema=True)(app) as state:
        yield state
    await engine.dispose()


async def session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session, session.begin():
        yield session  # it commits when the path operation has returned


app = FastAPI(lifespan=lifespan)
app.router.routes.append(stream.route)


@app.post("/orders", status_code=201)
async def order(
    item: str,
    utils: jobs.Utils,
    session: Annotated[AsyncSession, Depends(session, scope="function")],
) -> dict[str, int | str]:
    new = Order(item=item)
    session.add(new)
    await session.flush()
    job = await utils.add_job(ship, {"order": new.id}, awaited=True, conn=session)
    if item == "nothing":
        raise ValueError("rolls back the order and its job")
    return {"order": new.id, "progress": stream.url(job)}


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE
