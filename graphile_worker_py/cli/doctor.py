"""The `doctor` command: what is wrong with a server and its jobs, and what to do about it."""

import sys
from dataclasses import asdict

import click
import psycopg

from graphile_worker_py import config
from graphile_worker_py.cli.database import opened_utils
from graphile_worker_py.cli.exits import EXIT_FAILURE, told_clearly
from graphile_worker_py.cli.shared_options import configuration_options, json_option, read_settings
from graphile_worker_py.cli.tables import print_json
from graphile_worker_py.cli.text import harmless
from graphile_worker_py.errors import MissingRightsError
from graphile_worker_py.observing.doctor import examine, of_missing_rights, problems_first
from graphile_worker_py.observing.findings import Finding, Severity, notice


@click.command()
@configuration_options
@json_option
@told_clearly()
def doctor(
    connection: str | None, schema: str | None, config_file: str | None, as_json: bool
) -> None:
    """Examine the settings, the server and the jobs; the exit code is 1 if a person must act.

    It changes nothing. Each finding says what to do.
    """
    settings = read_settings({"connection": connection, "schema": schema}, config_file)
    config.runner_values(settings)  # which refuses values that do not fit together
    name = config.schema_name(settings["schema"].value)
    dsn = config.conninfo(settings["connection"].value)
    listens_directly = settings["listen_connection_string"].value is not None
    found = _of_variables()
    try:
        with opened_utils(dsn, name) as utils, psycopg.connect(dsn, autocommit=True) as conn:
            pid = conn.info.backend_pid
            steps = examine(name, backend_pid=pid, listens_directly=listens_directly)
            found += utils._run_steps(steps, conn)
    except MissingRightsError as error:  # it may not even look
        found.append(of_missing_rights(error))
    found = problems_first(found)
    problems = sum(each.severity is Severity.PROBLEM for each in found)
    if as_json:
        print_json({"findings": list(map(asdict, found)), "problems": problems})
    else:
        for each in found:
            click.echo(f"{each.severity}: {each.check}: {harmless(each.fact)}")
            click.echo(f"  {harmless(each.remedy)}")
        click.echo(f"{problems} problem(s), {len(found) - problems} notice(s)")
    if problems:
        sys.exit(EXIT_FAILURE)


def _of_variables() -> list[Finding]:
    return [
        notice("settings", f"the variable {name} is not read", f"did you mean {meant}?")
        for name, meant in config.misspelt_variables().items()
    ]
