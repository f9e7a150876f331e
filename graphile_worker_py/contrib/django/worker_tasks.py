"""The tasks of a Django project; `manage.py graphile_worker run` gives it.

It sets Django up, so `--tasks graphile_worker_py.contrib.django.worker_tasks:TASKS` needs nothing
but `DJANGO_SETTINGS_MODULE`.
"""

import django
from django.apps import apps

if not apps.ready:
    django.setup()

from graphile_worker_py.contrib.django.running import tasks_of_project  # set up first
from graphile_worker_py.errors import ConfigurationError

TASKS = tasks_of_project()
"""All of them."""

if not TASKS:
    raise ConfigurationError(
        "this project has no tasks: write @task functions in a module tasks of an app, or name "
        "their modules in the setting GRAPHILE_WORKER['MODULES']"
    )
