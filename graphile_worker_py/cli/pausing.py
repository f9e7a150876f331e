"""The commands that pause tasks, queues, pools or everything, and that resume them."""

from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Any, Final

import click

from graphile_worker_py.cli.admin import Change, changing, end, plural
from graphile_worker_py.cli.database import opened_utils
from graphile_worker_py.cli.exits import told_clearly
from graphile_worker_py.cli.moments import moment_callback
from graphile_worker_py.cli.shared_options import database_options, json_option
from graphile_worker_py.cli.tables import print_json, print_table, relative
from graphile_worker_py.cli.text import harmless
from graphile_worker_py.clock import utc_now
from graphile_worker_py.sql.pauses import Pause, PauseTarget

Command = Callable[..., None]
TARGETS: Final = tuple(PauseTarget)


def _target_options(command: Command) -> Command:
    """Give a command the options of what is paused, of which one must be given."""

    @wraps(command)
    def call(**given: Any) -> None:
        if sum(bool(given[name]) for name in TARGETS) != 1:
            raise click.UsageError("give exactly one of --task, --queue, --pool and --everything")
        command(**given)

    for option in (
        click.option("--everything", is_flag=True, help="All Python pools."),
        click.option("--pool", metavar="NAME", help="The pools of this name."),
        click.option("--queue", metavar="NAME", help="A queue, in Node's workers, too."),
        click.option("--task", metavar="IDENTIFIER", help="A task."),
    ):
        call = option(call)
    return call


@click.command()
@_target_options
@click.option("--reason", metavar="TEXT", help="Why; shown with the pause.")
@click.option(
    "--until", metavar="TIME", callback=moment_callback, help="ISO 8601, or from now as +10m."
)
@changing
def pause(
    change: Change, reason: str | None, until: datetime | None, everything: bool, **targets: Any
) -> None:
    """Start no more jobs of a task, of a queue, in pools of a name, or at all.

    Running jobs go on. A paused queue is left alone by Node's workers, too; all other pauses bind
    Python pools only.
    """
    with change.opened() as (utils, conn):
        made = utils.pause(**targets, everything=everything, reason=reason, until=until, conn=conn)
    if change.as_json:
        print_json(made.as_json())
    else:
        click.echo(change.done("paused", made.what))
    if made.notice is not None:
        click.echo(f"Note: {harmless(made.notice)}", err=True)


@click.command()
@_target_options
@changing
def resume(change: Change, everything: bool, **targets: Any) -> None:
    """Resume what was paused.

    A queue of which a job still runs is freed when that job has ended, by a Python pool.
    """
    with change.opened() as (utils, conn):
        ended = utils.resume(**targets, everything=everything, conn=conn)
    if ended is None:
        end(["that is not paused; `pauses` lists what is"])
    elif change.as_json:
        print_json(ended.as_json())
    else:
        click.echo(change.done("resumed", ended.what))


@click.command()
@click.argument("pool", required=False)
@click.option("--everything", is_flag=True, help="All Python pools that run now.")
@database_options
@json_option
@told_clearly()
def quiet(
    pool: str | None, everything: bool, connection: str | None, schema: str | None, as_json: bool
) -> None:
    """Have pools fetch no more jobs and run on, as before a deployment.

    POOL is a name, or the id of one pool. Pools that start later fetch jobs.
    """
    if (pool is None) == (not everything):
        raise click.UsageError("give either POOL, a name or an id, or --everything")
    with opened_utils(connection, schema) as utils:
        told = utils.quiet(pool=pool, everything=everything)
    if as_json:
        print_json(told)
    else:
        click.echo(f"Told {plural(len(told), 'worker pool')} to fetch no more jobs.")


@click.command()
@database_options
@json_option
@told_clearly()
def pauses(connection: str | None, schema: str | None, as_json: bool) -> None:
    """List what is paused."""
    with opened_utils(connection, schema) as utils:
        found = utils.pauses()
    if as_json:
        print_json([each.as_json() for each in found])
    else:
        print_table([_row(each) for each in found], if_none="Nothing is paused.")


def _row(pause: Pause) -> dict[str, object]:
    now = utc_now()
    return {
        "paused": pause.what,
        "since": relative(pause.at, now),
        "by": pause.by,
        "reason": pause.reason,
        "until": "its job has ended" if pause.ending else relative(pause.until, now),
    }
