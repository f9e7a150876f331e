"""The pages: HTML made on the server, which works without JavaScript."""

from importlib.resources import files

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from graphile_worker_py.web.pages import (
    adding,
    changing,
    entering,
    limits,
    looking,
    overview,
    stacks,
)
from graphile_worker_py.web.pages.rendering import error_page as error_page


def add_pages(app: FastAPI) -> None:
    """Add the pages to an application."""
    static = str(files("graphile_worker_py.web") / "static")
    app.mount("/static", StaticFiles(directory=static))
    for part in (
        entering.router,
        overview.router,
        adding.router,
        changing.router,
        limits.router,
        looking.router,
        stacks.router,
    ):
        app.include_router(part, include_in_schema=False)
