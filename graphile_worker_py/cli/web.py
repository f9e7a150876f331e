"""The `web` command: HTTP API and pages."""

import importlib
from collections.abc import Callable
from functools import partial

import click

from graphile_worker_py.cli.exits import EXIT_USAGE, exit_with, told_clearly
from graphile_worker_py.cli.shared_options import database_options
from graphile_worker_py.cli.work import run_in_loop


@click.command()
@database_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8787,
    show_default=True,
    metavar="N",
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--read-only", is_flag=True, help="Change nothing.")
@click.option("--user", metavar="NAME", help="Name to log in with.")
@click.option("--password-file", metavar="FILE", help="File with the password of --user.")
@click.option("--bearer-file", metavar="FILE", help="File with tokens, one a line.")
@click.option("--trust-header", metavar="NAME", help="Header in which a proxy names the user.")
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="CIDR",
    help="Address or network of a proxy in front. Can be repeated.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Host name that requests may use. Can be repeated.",
)
@click.option(
    "--audit-retention",
    metavar="TIME",
    default="400d",
    show_default=True,
    help="How long rows of the audit log are kept.",
)
@click.option("--open", "opens", is_flag=True, help="Open the pages in the browser.")
@told_clearly()
def web(
    connection: str | None,
    schema: str | None,
    host: str,
    port: int,
    read_only: bool,
    user: str | None,
    password_file: str | None,
    bearer_file: str | None,
    trust_header: str | None,
    trusted_proxies: tuple[str, ...],
    allowed_hosts: tuple[str, ...],
    audit_retention: str,
    opens: bool,
) -> None:
    """Serve HTTP API and pages, which show and steer jobs, until Ctrl-C.

    Without authentication it listens on this machine only, and prints a link that is good for one
    log-in.
    """
    _check_installed()
    from graphile_worker_py.web import app as building
    from graphile_worker_py.web import serving
    from graphile_worker_py.web.settings import Settings

    door = serving.choose_door(
        host=host,
        user=user,
        password_file=password_file,
        bearer_file=bearer_file,
        trust_header=trust_header,
        trusted_proxies=trusted_proxies,
    )
    app = building.build(
        connection,
        Settings(schema=schema, read_only=read_only or None, audit_retention=audit_retention),
        door=door,
        hosts=serving.hosts_for(host, door, allowed_hosts),
    )
    ready = partial(_show_link, partial(serving.link_of, door, host), opens)
    forwarding = () if trust_header is not None else trusted_proxies
    run_in_loop(serving.serve(app, host=host, port=port, ready=ready, trusted_proxies=forwarding))


def _show_link(link_of: Callable[[int], str], opens: bool, port: int) -> None:
    link = link_of(port)
    click.echo(link)
    if opens:
        click.launch(link)


def _check_installed() -> None:
    try:
        importlib.import_module("graphile_worker_py.web.app")
    except ModuleNotFoundError as error:
        exit_with(
            f"the package {error.name} is missing: pip install 'graphile-worker-py[web]'",
            EXIT_USAGE,
        )
