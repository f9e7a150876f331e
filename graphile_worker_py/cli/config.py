"""The commands that show the configuration, and all options."""

from collections.abc import Iterable, Sequence
from typing import Any

import click

from graphile_worker_py.cli.exits import told_clearly
from graphile_worker_py.cli.shared_options import configuration_options, json_option
from graphile_worker_py.cli.tables import print_json, print_table
from graphile_worker_py.config import (
    CONNECTIONS,
    Setting,
    misspelt_variables,
    read_settings,
    runner_values,
)
from graphile_worker_py.options import OPTIONS
from graphile_worker_py.options.declaring import Option
from graphile_worker_py.postgres.masking import masked, masked_text


@click.group()
def config() -> None:
    """Show the configuration."""


@config.command()
@configuration_options
@json_option
@told_clearly()
def show(
    connection: str | None, schema: str | None, config_file: str | None, as_json: bool
) -> None:
    """Show the value of each option, and its source.

    Passwords are masked.
    """
    settings = read_settings({"connection": connection, "schema": schema}, file=config_file)
    runner_values(settings)
    if as_json:
        print_json({name: _as_json(name, setting) for name, setting in settings.items()})
    else:
        rows = [_row(name, setting) for name, setting in settings.items()]
        print_table(rows, if_none="No options.", whole=("option", "value", "from"))
    for variable, meant in misspelt_variables().items():
        click.echo(f"Not read: {variable}; did you mean {meant}?", err=True)


def _shown(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return masked(value) if name in CONNECTIONS else masked_text(value)


def _as_json(name: str, setting: Setting) -> dict[str, Any]:
    return {
        "value": _shown(name, setting.value),
        "origin": setting.origin,
        "place": setting.place or None,
    }


def _row(name: str, setting: Setting) -> dict[str, object]:
    value = _shown(name, setting.value)
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
    """A Markdown table of all options that files, variables and flags can set."""
    # The names share a column, because the table would be wider than a page.
    rows = [([each.name, each.variable, *each.flags], each) for each in OPTIONS.values()]
    return _table("Key, variable, flag", rows)


def code_reference_table(options: Iterable[Option]) -> str:
    """A Markdown table of options that only code can set."""
    return _table("Name", [([each.name], each) for each in options])


def _table(names: str, rows: Iterable[tuple[Sequence[str], Option]]) -> str:
    lines = [f"| {names} | Value | Default | Meaning |", "| --- | --- | --- | --- |"]
    for shown, option in rows:
        default = f"`{option.shown_default}`" if option.shown_default else ""
        name = "<br>".join(f"`{each}`" for each in shown)
        lines.append(f"| {name} | {option.kind} | {default} | {option.doc} |")
    return "\n".join(lines)
