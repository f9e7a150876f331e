"""Recurring jobs: the crontab, the timetable of due items, and the scheduler that adds jobs."""

from graphile_worker_py.cron.crontab import parse_crontab, read_crontab
from graphile_worker_py.cron.items import (
    CronDigest,
    CronItem,
    CronItemOptions,
    Overlap,
    ParsedCronItem,
    parse_cron_item,
    parse_cron_items,
)
from graphile_worker_py.cron.schedule import Cron

__all__ = [
    "Cron",
    "CronDigest",
    "CronItem",
    "CronItemOptions",
    "Overlap",
    "ParsedCronItem",
    "parse_cron_item",
    "parse_cron_items",
    "parse_crontab",
    "read_crontab",
]
