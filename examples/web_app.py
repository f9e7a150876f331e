"""A web application that adds jobs in its transactions and runs them in the same process.

    pip install starlette uvicorn
    DATABASE_URL=postgresql://localhost/playground python examples/web_app.py
    curl -d '{"item": "book"}' http://127.0.0.1:8000/orders

In production, run the worker as a separate process (`graphile-worker-py --tasks …`), so that you
can stop and scale it independently of the web server. Then replace `Runner` with `WorkerUtils`.
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import TypedDict

import uvicorn
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from graphile_worker_py import Runner, task


class State(TypedDict):
    """The contents of `request.state`."""

    pool: AsyncConnectionPool
    runner: Runner


@task
async def ship(payload: dict[str, int]) -> None:
    print("shipping order", payload["order"], flush=True)


@contextlib.asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[State]:
    # Requests and jobs share one connection pool.
    async with AsyncConnectionPool(os.environ.get("DATABASE_URL", ""), open=False) as pool:
        async with pool.connection() as conn:
            await conn.execute(
                "create table if not exists orders"
                " (id int generated always as identity primary key, item text not null)"
            )
        # The server handles signals. When it stops, leaving the block stops the worker.
        async with Runner(pool, tasks=[ship], no_handle_signals=True) as runner:
            yield {"pool": pool, "runner": runner}


async def order(request: Request) -> JSONResponse:
    """Insert an order and add its job in one transaction."""
    try:
        item = (await request.json())["item"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return JSONResponse({"error": "expected an object with an item"}, status_code=400)
    async with request.state.pool.connection() as conn, conn.transaction():
        row = await conn.execute("insert into orders (item) values (%s) returning id", [item])
        (order_id,) = await row.fetchone()
        await request.state.runner.add_job("ship", {"order": order_id}, conn=conn)
        if item == "nothing":
            raise ValueError("rolls back the order and its job")
    return JSONResponse({"order": order_id}, status_code=201)


app = Starlette(routes=[Route("/orders", order, methods=["POST"])], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
