"""A Django project within the process of the tests, on the database of the current test."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import django
from django.conf import settings
from django.db import connections
from django.db.backends.postgresql.features import DatabaseFeatures
from psycopg.conninfo import conninfo_to_dict

TAKE_OLD_SERVERS = """
from django.db.backends.postgresql.features import DatabaseFeatures

DatabaseFeatures.minimum_database_version = (12,)
"""
"""For the settings of a project: Django refuses older servers, which have all that tests need."""
BACKEND = "graphile_worker_py.contrib.django.backend.GraphileWorkerBackend"
ADMIN = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
]


def database(dsn: str, **more: Any) -> dict[str, Any]:
    """The entry of `DATABASES` for a connection string."""
    parts = conninfo_to_dict(dsn)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts["dbname"],
        "USER": parts["user"],
        "PASSWORD": parts.get("password", ""),
        "HOST": parts["host"],
        "PORT": parts["port"],
        **more,
    }


def set_up() -> None:
    """Configure Django, once for the process."""
    if settings.configured:
        return
    backport = ["django_tasks"] if django.VERSION < (6, 0) else []
    settings.configure(
        DATABASES={
            "default": {"ENGINE": "django.db.backends.postgresql", "NAME": "none"},
            "lite": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        },
        INSTALLED_APPS=[
            *ADMIN,
            *backport,
            "graphile_worker_py.contrib.django",
            "tests.contrib.shop",
        ],
        LOGGING_CONFIG=None,
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        ROOT_URLCONF="tests.contrib.django_urls",
        SECRET_KEY=os.urandom(16).hex(),
        TASKS={
            "default": {
                "BACKEND": BACKEND,
                "QUEUES": ["default", "ledger"],
                "OPTIONS": {"serial_queues": ["ledger"]},
            },
            "once": {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": {"max_attempts": 1}},
        },
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        USE_TZ=True,
    )
    django.setup()
    # Django refuses older servers, which have all that these tests need.
    DatabaseFeatures.minimum_database_version = (12,)


@contextmanager
def on_database(dsn: str, **more: Any) -> Iterator[None]:
    """Let Django's default connection lead to this database, for the block."""
    set_up()
    before = connections.settings["default"]
    wrapper = connections["default"]
    wrapper.close()
    del connections["default"]
    connections.settings["default"] = {**before, **database(dsn, **more)}
    try:
        yield
    finally:
        connections["default"].close()
        del connections["default"]
        connections.settings["default"] = before
