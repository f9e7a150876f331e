"""HTTP API and pages, behind the extra `web`."""

from graphile_worker_py.web.access import Access
from graphile_worker_py.web.app import create_app

__all__ = ["Access", "create_app"]
