"""The tables of history in the side schema.

Runs and counters are partitioned by time, so that old ones are dropped and never deleted row by
row. There is no default partition: a row for which none exists fails, and outcomes are recorded
without it.
"""

from collections.abc import Sequence
from typing import Final, LiteralString

LEAF: Final = "history"
"""Name under which the tables are registered in the side schema."""

# add_partitions: makes the partitions of a table from yesterday until a week from now, by the clock
#   of the database and in UTC. A partition is made apart and then attached, because `create table …
#   partition of` would wait for all statements on the table and keep new ones waiting.
# drop_partition: drops a partition of which all rows are in the past.
# Both run as their owner, who owns the tables too, and can do nothing else: so roles of workers can
# be allowed to call them, which do not own the tables.
_ADD_PARTITIONS: Final = """
create function graphile_worker_py.add_partitions(parent pg_catalog.text)
returns pg_catalog.int4 language plpgsql security definer
set search_path = pg_catalog, pg_temp as $$
declare
  unit constant text := case parent
    when 'runs_completed' then 'day' when 'runs_failed' then 'day' when 'task_minutes' then 'week'
  end;
  ahead constant int4 := case unit when 'day' then 7 else 1 end;
  fillfactor constant int4 := case unit when 'day' then 100 else 70 end;
  step constant interval := ('1 ' || unit)::interval;
  today constant timestamp := date_trunc(unit, now() at time zone 'UTC');
  part text;
  made int4 := 0;
begin
  if unit is null then
    raise exception 'graphile_worker_py has no partitioned table %', parent;
  end if;
  for place in -1 .. ahead loop
    part := parent || '_' || to_char(today + place * step, 'YYYYMMDD');
    continue when to_regclass(format('graphile_worker_py.%I', part)) is not null;
    begin
      execute format(
        'create table graphile_worker_py.%I (like graphile_worker_py.%I including all) '
          'with (fillfactor = %s)',
        part, parent, fillfactor
      );
      execute format(
        'alter table graphile_worker_py.%I attach partition graphile_worker_py.%I '
          'for values from (%L) to (%L)',
        parent, part,
        (today + place * step) at time zone 'UTC', (today + (place + 1) * step) at time zone 'UTC'
      );
      made := made + 1;
    exception when duplicate_table or unique_violation then
      null; -- another session has made it
    end;
  end loop;
  return made;
end
$$
"""
_DROP_PARTITION: Final = """
create function graphile_worker_py.drop_partition(part pg_catalog.text)
returns pg_catalog.void language plpgsql security definer
set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
declare
  parent constant text := substring(
    part from '^(runs_completed|runs_failed|task_minutes)_[0-9]{8}$'
  );
  step constant interval := case parent when 'task_minutes' then '1 week' else '1 day' end;
  attached constant text := (
    select coalesce(to_jsonb(pg_inherits) ->> 'inhdetachpending', 'false')
    from pg_inherits where inhrelid = to_regclass(format('graphile_worker_py.%I', part))
  );
begin
  if parent is null or right(part, 8)::timestamp + step > now() at time zone 'UTC' then
    raise exception 'graphile_worker_py has no partition % that is over', part;
  end if;
  if attached is not null then
    execute format(
      'alter table graphile_worker_py.%I detach partition graphile_worker_py.%I %s',
      parent, part, case attached when 'true' then 'finalize' else '' end
    );
  end if;
  execute format('drop table graphile_worker_py.%I', part);
end
$$
"""

# runs_completed, runs_failed: a row for each attempt that ended; the second table has all outcomes
#   but success. Ids of jobs come back if the schema of jobs is made anew, which is why the rows of
#   this and other tables have `job_created_at`.
_RUNS_COMPLETED: Final = """
create table graphile_worker_py.runs_completed (
  worker_schema pg_catalog.text not null,
  job_id pg_catalog.int8 not null,
  job_created_at pg_catalog.timestamptz not null,
  task pg_catalog.text not null,
  attempt pg_catalog.int4 not null,
  outcome pg_catalog.text not null,
  run_at pg_catalog.timestamptz not null,
  started_at pg_catalog.timestamptz,
  finished_at pg_catalog.timestamptz not null,
  duration pg_catalog.float8,
  pool_id pg_catalog.text,
  queue_name pg_catalog.text,
  key pg_catalog.text,
  error pg_catalog.text,
  error_group pg_catalog.text,
  result pg_catalog.json,
  result_omitted pg_catalog.text,
  logs pg_catalog.text,
  payload pg_catalog.json,
  trace_id pg_catalog.text
) partition by range (finished_at)
"""
_RUNS_FAILED: Final = """
create table graphile_worker_py.runs_failed (
  like graphile_worker_py.runs_completed
) partition by range (finished_at)
"""
_RUNS: Final = """
create view graphile_worker_py.runs as
select * from graphile_worker_py.runs_completed
union all
select * from graphile_worker_py.runs_failed
"""

# task_minutes: what all pools counted of a task in a minute. The histograms are sparse: the number
#   of a bucket, and how many runs are in it.
_TASK_MINUTES: Final = """
create table graphile_worker_py.task_minutes (
  worker_schema pg_catalog.text not null,
  task pg_catalog.text not null,
  minute pg_catalog.timestamptz not null,
  completed pg_catalog.int8 not null default 0,
  failed pg_catalog.int8 not null default 0,
  retried pg_catalog.int8 not null default 0,
  discarded pg_catalog.int8 not null default 0,
  snoozed pg_catalog.int8 not null default 0,
  cancelled pg_catalog.int8 not null default 0,
  wait pg_catalog.jsonb not null default '{}',
  run pg_catalog.jsonb not null default '{}',
  primary key (worker_schema, task, minute)
) partition by range (minute)
"""

# job_state: what is known of a job while it has its row: how far it is, where its next attempt goes
#   on, and whether it is to be cancelled.
# awaited: jobs of which a run is to be kept because a program waits for their end.
_JOB_STATE: Final = """
create table graphile_worker_py.job_state (
  worker_schema pg_catalog.text not null,
  job_id pg_catalog.int8 not null,
  job_created_at pg_catalog.timestamptz not null,
  cursor pg_catalog.json,
  progress pg_catalog.float8,
  total pg_catalog.float8,
  message pg_catalog.text,
  snoozes pg_catalog.int4 not null default 0,
  cancel_reason pg_catalog.text,
  cancel_by pg_catalog.text,
  cancel_at pg_catalog.timestamptz,
  cancel_grace pg_catalog.float8,
  primary key (worker_schema, job_id)
) with (fillfactor = 70)
"""
_AWAITED: Final = """
create table graphile_worker_py.awaited (
  worker_schema pg_catalog.text not null,
  job_id pg_catalog.int8 not null,
  job_created_at pg_catalog.timestamptz not null,
  until pg_catalog.timestamptz not null,
  primary key (worker_schema, job_id)
)
"""

MIGRATIONS: Final[Sequence[Sequence[LiteralString]]] = (
    (
        _ADD_PARTITIONS,
        "revoke all on function graphile_worker_py.add_partitions(pg_catalog.text) from public",
        _DROP_PARTITION,
        "revoke all on function graphile_worker_py.drop_partition(pg_catalog.text) from public",
        _RUNS_COMPLETED,
        "create index on graphile_worker_py.runs_completed (job_id)",
        "create index on graphile_worker_py.runs_completed using brin (finished_at)",
        _RUNS_FAILED,
        "create index on graphile_worker_py.runs_failed (job_id)",
        "create index on graphile_worker_py.runs_failed using brin (finished_at)",
        "create index on graphile_worker_py.runs_failed (task, finished_at)",
        _RUNS,
        _TASK_MINUTES,
        _JOB_STATE,
        _AWAITED,
        "select graphile_worker_py.add_partitions('runs_completed')",
        "select graphile_worker_py.add_partitions('runs_failed')",
        "select graphile_worker_py.add_partitions('task_minutes')",
    ),
)
