"""Pools as they are given on the command line, such as `mail:2:mail/*,newsletter`."""

from collections.abc import Sequence
from typing import Any, Final

from graphile_worker_py.errors import ConfigurationError

METAVAR: Final = "NAME:N[:TASK,…]"


def pools_of_flags(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The table of pools that flags say, as a file would have it.

    Args:
        given: For each pool its name, how many jobs it runs at once, and its tasks or patterns with
            commas between them; without tasks, it has all that no other pool has.

    Raises:
        ConfigurationError: One is not of that form, or two have one name.
    """
    pools: dict[str, dict[str, Any]] = {}
    for text in given:
        name, _, rest = text.partition(":")
        number, has_tasks, tasks = rest.partition(":")
        names = [each.strip() for each in tasks.split(",")]
        if not name or not (number.isascii() and number.isdecimal()) or (has_tasks and "" in names):
            raise ConfigurationError(
                f"--pool must be {METAVAR}, such as mail:2:mail/*,newsletter or default:20, not "
                f"{text!r}"
            )
        if name in pools:
            raise ConfigurationError(f"--pool names pool {name!r} twice")
        # No longer number is allowed; the text of one of thousands of digits can't be converted.
        pools[name] = {"concurrent_jobs": int(number[:20])} | ({"tasks": names} if tasks else {})
    return pools
