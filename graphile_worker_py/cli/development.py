"""Commands that bring their own database: `postgres` and `demo`."""

import signal
import threading

import click

from graphile_worker_py.cli.exits import EXIT_USAGE, exit_with, told_clearly
from graphile_worker_py.cli.work import run_in_loop
from graphile_worker_py.dev.demo import demonstrate
from graphile_worker_py.dev.postgres import EmbeddedPostgres


@click.command()
@click.option("--data-dir", metavar="DIR", help="Keep the data here. Default: delete it.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="Default: a free one.")
def postgres(data_dir: str | None, port: int | None) -> None:
    """Run a PostgreSQL server for development until Ctrl-C; prints its connection string."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with told_clearly(), EmbeddedPostgres(data_dir, port=port) as server:
        click.echo(server.dsn)
        click.echo("Ready. For example: export DATABASE_URL=… ; Ctrl-C stops it.", err=True)
        ended.wait()


@click.command()
@click.option("--web", "with_pages", is_flag=True, help="Show pages with sample jobs.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8787, metavar="N", help="Port of the pages."
)
def demo(with_pages: bool, port: int) -> None:
    """Show what the package does, on a temporary PostgreSQL server. Takes some seconds."""
    if not with_pages:
        with told_clearly(), EmbeddedPostgres() as server:
            run_in_loop(demonstrate(server.dsn))
        return
    try:
        from graphile_worker_py.dev.demo_web import demonstrate_pages
    except ModuleNotFoundError as error:
        missing = f"the package {error.name} is missing: pip install 'graphile-worker-py[web]'"
        exit_with(missing, EXIT_USAGE)

    def show(link: str) -> None:
        click.echo(link)
        click.launch(link)

    with told_clearly(), EmbeddedPostgres() as server:
        run_in_loop(demonstrate_pages(server.dsn, port=port, show=show))
