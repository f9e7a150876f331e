"""The recurring jobs of a runner: those that its options give, and those of its tasks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.tasks.task import Task

# Importing cron takes a third of the time of all other modules; most programs have no crontab.
if TYPE_CHECKING:
    from graphile_worker_py.cron import ParsedCronItem


def given_items(given: Mapping[str, Any]) -> "Sequence[ParsedCronItem]":
    """The items of the one option that gives them.

    Raises:
        ConfigurationError: Several options do, or a crontab has errors.
    """
    sources = [name for name in ("crontab", "crontab_file", "parsed_cron_items") if name in given]
    if not sources:
        return ()
    from graphile_worker_py.cron import parse_crontab, read_crontab  # noqa: PLC0415  # see above

    match sources:
        case ["crontab"]:
            return parse_crontab(given["crontab"])
        case ["crontab_file"]:
            return read_crontab(given["crontab_file"])
        case ["parsed_cron_items"]:
            return tuple(given["parsed_cron_items"])
    raise ConfigurationError(f"{' and '.join(sources)} were given; give one of them")


def with_items_of(
    tasks: Iterable[Task[Any]], given: "Sequence[ParsedCronItem]"
) -> "Sequence[ParsedCronItem]":
    """The given items, and those of tasks that have `cron`.

    Raises:
        CrontabError: A pattern or a time zone is not one, or two items have the same identifier.
    """
    timed = [task for task in tasks if "cron" in task.settings]
    if not timed:
        return given
    from graphile_worker_py.cron.items import (  # noqa: PLC0415  # see above
        CronItem,
        CronItemOptions,
        check_items,
        parse_cron_items,
    )

    of_tasks = parse_cron_items(
        CronItem(
            task.identifier,
            task.settings["cron"],
            options=CronItemOptions(timezone=task.settings.get("timezone")),
        )
        for task in timed
    )
    items = (*given, *of_tasks)
    check_items(items)
    return items
