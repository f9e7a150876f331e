"""A job like another one, as programs add it."""

from typing import Any

import orjson

from graphile_worker_py.job.spec import DEFAULT_MAX_ATTEMPTS
from graphile_worker_py.postgres.query import quoted
from graphile_worker_py.sql.inspect import ListedJob
from graphile_worker_py.web import shown


def copies(job: ListedJob, payload: str, *, schema: str, address: str) -> list[tuple[str, str]]:
    """How a job is added with Python, SQL and curl.

    Args:
        job: The job.
        payload: Its payload, as it may be shown.
        schema: The schema of jobs.
        address: The address of the application.
    """
    options: dict[str, Any] = {
        "queue_name": job.queue_name,
        "priority": job.priority or None,
        "max_attempts": None if job.max_attempts == DEFAULT_MAX_ATTEMPTS else job.max_attempts,
        "job_key": job.key,
        "flags": shown.flags_of(job) or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return [
        ("Python", _python(job.task_identifier, payload, given)),
        ("SQL", _sql_call(job.task_identifier, payload, given, schema)),
        ("curl", _curl(job.task_identifier, payload, given, address)),
    ]


def _python(task: str, payload: str, given: dict[str, Any]) -> str:
    keywords = "".join(f",\n    {name}={value!r}" for name, value in given.items())
    return f"await utils.add_job(\n    {task!r},\n    json.loads({payload!r}){keywords},\n)"


def _sql_call(task: str, payload: str, given: dict[str, Any], schema: str) -> str:
    named = "".join(f",\n  {name} => {_sql(value)}" for name, value in given.items())
    values = f"{_sql(task)},\n  {_sql(payload)}::json{named}"
    return f"select {quoted(schema)}.add_job(\n  {values}\n);"


def _sql(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "array[" + ", ".join(_sql(each) for each in value) + "]"
    return "'" + str(value).replace("'", "''") + "'"


def _curl(task: str, payload: str, given: dict[str, Any], address: str) -> str:
    body = orjson.dumps({"task": task, **given}).decode()[:-1]
    text = f'{body},"payload":{payload}}}'.replace("'", "'\\''")
    return (
        f"curl -X POST {address}/api/v1/jobs \\\n  -H 'Content-Type: application/json' \\\n"
        f"  -H 'Authorization: …' \\\n  -d '{text}'"
    )
