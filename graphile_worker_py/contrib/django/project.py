"""The setting `GRAPHILE_WORKER` of a project."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings

from graphile_worker_py import config
from graphile_worker_py.checks import check_flag, check_text, check_texts
from graphile_worker_py.errors import ConfigurationError

NAME: Final = "GRAPHILE_WORKER"
KEYS: Final = ("DATABASE", "SCHEMA", "MIGRATE", "HOOKS", "MODULES")


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """The setting, checked. See the package for its keys."""

    database: str
    schema: str
    migrates: bool
    hooks: Sequence[Any]
    modules: Sequence[str]


def read_project() -> Project:
    """The setting as it is now.

    Raises:
        ConfigurationError: A key is unknown, or its value is not allowed.
    """
    given = getattr(settings, NAME, {})
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"the setting {NAME} must be a dict, not {given!r}")
    for key in given:
        if key not in KEYS:
            raise ConfigurationError(f"{NAME} has no key {key!r}; keys are {', '.join(KEYS)}")
    database = given.get("DATABASE", "default")
    check_text(f"{NAME}['DATABASE']", database, shortest=1)
    migrates = given.get("MIGRATE", True)
    check_flag(f"{NAME}['MIGRATE']", migrates)
    modules = list(given.get("MODULES", ()))
    check_texts(f"{NAME}['MODULES']", modules)
    return Project(
        database=database,
        schema=config.schema_name(given.get("SCHEMA")),
        migrates=migrates,
        hooks=given.get("HOOKS", ()),
        modules=modules,
    )
