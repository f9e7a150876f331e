"""The commands that tell what is configured, and what could be."""

from typing import Any

import click

from graphile_worker_py.cli.exits import told_clearly
from graphile_worker_py.cli.shared_options import configuration_options
from graphile_worker_py.cli.tables import print_json, print_table
from graphile_worker_py.config import (
    Setting,
    passed_over_variables,
    read_settings,
    runner_values,
    variable_of,
)
from graphile_worker_py.options import OPTIONS, Option
from graphile_worker_py.postgres.masking import masked


@click.group()
def config() -> None:
    """Show the configuration."""


@config.command()
@configuration_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@told_clearly()
def show(
    connection: str | None, schema: str | None, config_file: str | None, as_json: bool
) -> None:
    """Show the value of each option here and now, and where it comes from.

    Passwords are masked.
    """
    settings = read_settings({"connection": connection, "schema": schema}, file=config_file)
    runner_values(settings)
    if as_json:
        print_json({name: _as_json(setting) for name, setting in settings.items()})
    else:
        rows = [_row(name, setting) for name, setting in settings.items()]
        print_table(rows, if_none="No options.")
    for variable, meant in passed_over_variables().items():
        click.echo(f"Not read: {variable}; did you mean {meant}?", err=True)


def _shown(value: Any) -> Any:
    return masked(value) if isinstance(value, str) else value


def _as_json(setting: Setting) -> dict[str, Any]:
    return {
        "value": _shown(setting.value),
        "origin": setting.origin,
        "place": setting.place or None,
    }


def _row(name: str, setting: Setting) -> dict[str, object]:
    value = _shown(setting.value)
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, list):
        value = ", ".join(value)
    return {"option": name, "value": value, "from": setting.place or str(setting.origin)}


@config.command()
def reference() -> None:
    """Print a table of all options, as Markdown."""
    click.echo(reference_table())


def reference_table() -> str:
    """What all options are called, are by default, and do."""
    head = ["| Key | Value | Default | |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *map(_reference_row, OPTIONS.values())])


def _reference_row(option: Option) -> str:
    # A key that is also a variable stands in one column, lest the table be wider than a page.
    name = f"`{option.name}`<br>`{variable_of(option.name)}`"
    match option.default:
        case None:
            default = ""
        case bool():
            default = f"`{str(option.default).lower()}`"
        case float():
            default = f"`{option.default:g}`"
        case _:
            default = f"`{option.default}`"
    return f"| {name} | {option.kind} | {default} | {option.doc} |"
