"""An app for Django: jobs in its transactions, a backend for its tasks, a worker, admin pages.

Add it to `INSTALLED_APPS`. The setting `GRAPHILE_WORKER` is a dict, and may be left out:

- `DATABASE`: alias of the database that has the jobs; `"default"` by default.
- `SCHEMA`: schema of the job tables; `"graphile_worker"` by default.
- `MIGRATE`: whether `manage.py migrate` installs the schemas; True by default.
- `HOOKS`: plugins around adding jobs in the processes of the project.
- `MODULES`: modules with tasks, beside the modules `tasks` of all apps.
"""

from graphile_worker_py.sync_worker_utils import SyncWorkerUtils


def utils() -> SyncWorkerUtils:
    """A `SyncWorkerUtils` on Django's own connection of the current thread.

    It needs no `with`. What it does within `transaction.atomic()` is a part of that transaction.
    Errors of the database are Django's.

    Raises:
        ConfigurationError: The setting `GRAPHILE_WORKER` or the database is not one it can use.
    """
    from graphile_worker_py.contrib.django.connecting import DjangoUtils  # noqa: PLC0415  # by apps

    return DjangoUtils()
