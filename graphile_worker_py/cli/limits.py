"""The commands that show the limits and breakers of tasks, and change them."""

from collections.abc import Sequence
from dataclasses import asdict

import click

from graphile_worker_py.cli.admin import Change, changing
from graphile_worker_py.cli.database import opened_utils
from graphile_worker_py.cli.exits import told_clearly
from graphile_worker_py.cli.shared_options import database_options, json_option
from graphile_worker_py.cli.tables import print_json, print_table, relative
from graphile_worker_py.clock import utc_now
from graphile_worker_py.sql.breakers import Breaker
from graphile_worker_py.sql.limits import Limit, LimitKind
from graphile_worker_py.sync_worker_utils import SyncWorkerUtils

_kind = click.option(
    "--kind",
    type=click.Choice([*map(str, LimitKind)]),
    help="Of two limits with one name. Default: jobs at once, if there is such a limit.",
)


@click.group(invoke_without_command=True)
@database_options
@json_option
@click.pass_context
@told_clearly()
def limits(ctx: click.Context, connection: str | None, schema: str | None, as_json: bool) -> None:
    """List the limits of tasks, and how much of them is used; set or clear their numbers."""
    if ctx.invoked_subcommand is not None:
        return
    with opened_utils(connection, schema) as utils:
        found = utils.limits()
    _show(found, as_json=as_json)


@limits.command(name="set")
@click.argument("name")
@click.argument("amount", type=click.IntRange(0))
@_kind
@changing
def set_limit(change: Change, name: str, amount: int, kind: str | None) -> None:
    """Set the number of a limit, which counts until it is cleared; 0 pauses its tasks."""
    change.confirm(f"Limit {name!r} will be {amount}. Go on?")
    with change.opened() as (utils, conn):
        now = SyncWorkerUtils.set_limit(utils, name, amount, kind=kind, conn=conn)
    _show([now], as_json=change.as_json)


@limits.command(name="clear")
@click.argument("name")
@_kind
@changing
def clear_limit(change: Change, name: str, kind: str | None) -> None:
    """Let the number in the code count again."""
    change.confirm(f"The number in the code will count for limit {name!r}. Go on?")
    with change.opened() as (utils, conn):
        now = SyncWorkerUtils.clear_limit(utils, name, kind=kind, conn=conn)
    _show([now], as_json=change.as_json)


@limits.command(name="breakers")
@database_options
@json_option
@told_clearly()
def breakers(connection: str | None, schema: str | None, as_json: bool) -> None:
    """List the circuit breakers of tasks: which are open, for how long, and why."""
    with opened_utils(connection, schema) as utils:
        found = utils.breakers()
    if as_json:
        print_json([{**asdict(each), "state": each.state} for each in found])
        return
    rows = [_row(each) for each in found]
    print_table(rows, if_none="No breakers: no worker pool has had one.", whole=("name", "state"))


def _row(breaker: Breaker) -> dict[str, object]:
    return {
        "name": breaker.name,
        "state": breaker.state,
        "failures": str(breaker.failures),
        "opened": relative(breaker.opened_at, utc_now()),
        "lets a job through": relative(breaker.open_until, utc_now()),
        "last failure": breaker.reason,
        "tasks": ", ".join(breaker.tasks),
    }


@limits.command(name="reset")
@click.argument("name")
@changing
def reset_breaker(change: Change, name: str) -> None:
    """Close a circuit breaker, so that all jobs of its tasks go on."""
    change.confirm(f"Breaker {name!r} will be closed. Go on?")
    with change.opened() as (utils, conn):
        SyncWorkerUtils.reset_breaker(utils, name, conn=conn)
    if change.as_json:
        print_json({"closed": name})
    else:
        click.echo(f"Breaker {name!r} is closed.")


def _show(found: Sequence[Limit], *, as_json: bool) -> None:
    if as_json:
        print_json([{**asdict(each), "state": each.state} for each in found])
        return
    rows = [
        {
            "name": each.name,
            "limit": _number(each),
            "used": str(each.in_use),
            "state": each.state,
            "set by": "code" if each.set_amount is None else f"operator (code: {each.declared:g})",
            "tasks": ", ".join(each.tasks),
        }
        for each in found
    ]
    print_table(rows, if_none="No limits: no worker pool has had one.", whole=("name", "limit"))


def _number(limit: Limit) -> str:
    if limit.kind is LimitKind.CONCURRENCY:
        by = "" if limit.key is None else f" for each {limit.key}"
        return f"{limit.amount:g} at once{by}"
    return f"{limit.amount:g} in {limit.per:g} s, {limit.burst} at once"
