"""The channels on which new jobs and schema changes are announced.

They belong to the whole database: installations in several schemas share them.
"""

from typing import Final

JOBS_INSERT: Final = "jobs:insert"
WORKER_MIGRATE: Final = "worker:migrate"

LISTEN: Final = 'listen "jobs:insert"; listen "worker:migrate"'
