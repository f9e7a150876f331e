"""The value of a job under a limit that counts the jobs of each value of a key apart."""

from typing import Final, LiteralString

from graphile_worker_py.options.limits import FLAG_KEY
from graphile_worker_py.postgres.query import Query

# The value of a job `jobs` under a limit, `''` if it has none. `<path>` stands for the names of
# fields, one within the other, or for how a flag begins. A payload with escapes goes through a
# function, because some can't be read.
_IN_PAYLOAD: Final = """
coalesce(
  case
    when pg_catalog.strpos(jobs.payload::pg_catalog.text, pg_catalog.chr(92) || 'u') = 0
    then pg_catalog.json_extract_path_text(jobs.payload, variadic <path>::pg_catalog.text[])
    else graphile_worker_py.limit_key(jobs.payload, <path>::pg_catalog.text[])
  end,
  ''
)"""
_IN_FLAGS: Final = """
coalesce(
  (
    select pg_catalog.min(pg_catalog.substr(
      flags.name, pg_catalog.length((<path>::pg_catalog.text[])[1]) + 1
    ))
    from pg_catalog.jsonb_object_keys(
      case when pg_catalog.jsonb_typeof(jobs.flags) = 'object' then jobs.flags end
    ) as flags (name)
    where pg_catalog.left(
      flags.name, pg_catalog.length((<path>::pg_catalog.text[])[1])
    ) = (<path>::pg_catalog.text[])[1]
  ),
  ''
)"""


def value_at(key: str) -> LiteralString:
    """The expression for the value of a job `jobs` at a key."""
    return _IN_FLAGS if key.startswith(FLAG_KEY) else _IN_PAYLOAD


def path_of(key: str) -> list[str]:
    """What `<path>` stands for."""
    return [key.removeprefix(FLAG_KEY)] if key.startswith(FLAG_KEY) else key.split(".")


# What the value of a job is.
_VALUE: Final = """
select {value}
from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
where jobs.id = $1::pg_catalog.int8
"""


def value_of(job_id: int, key: str) -> Query[str | None]:
    """The value of a job under a limit with a key; None if there is no such job."""
    text = _VALUE.replace("{value}", value_at(key).replace("<path>", "$2"))
    return Query(
        text, (job_id, path_of(key)), lambda rows: rows[0][0] if rows else None, prepare=False
    )
