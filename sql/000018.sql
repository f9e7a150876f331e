-- The whole schema as it stands at revision 18, in one step.
--
-- Node reached this shape through eighteen migrations. We create the result: the same tables,
-- columns in the same order, the same names, so that a Node worker, a schema diff or a later Node
-- migration cannot tell who installed it. What looks like an accident below (`jobs_pkey1`,
-- `jobs_id_not_null1`) is one: older tables with the plain names were still around when Node
-- created these.
--
-- The migrator creates the schema and the `migrations` table before it runs this file, and writes
-- rows 1 to 18 itself, and replaces the placeholder before each object by the quoted name of the
-- schema. It must not stand in a comment, which a line feed in the name would end. Syntax is that of
-- PostgreSQL 12.

-- Types and functions outside of function bodies are qualified, so that nothing in the search path of
-- the installing role can stand in for them. The bodies are as upstream's in this respect.
--
-- Constraint names of NOT NULL are stored from PostgreSQL 18 on and ignored before.

-- A task is the name of a piece of code. Jobs refer to it by number, which keeps their rows and
-- indexes small.
create table :GRAPHILE_WORKER_SCHEMA._private_tasks (
  id integer constraint tasks_id_not_null not null
    generated always as identity (sequence name :GRAPHILE_WORKER_SCHEMA.tasks_id_seq),
  identifier pg_catalog.text constraint tasks_identifier_not_null not null,
  constraint tasks_pkey primary key (id),
  constraint tasks_identifier_key unique (identifier),
  constraint tasks_identifier_check check (pg_catalog.length(identifier) <= 128)
);

-- A queue is a serial lane: its row is locked while one of its jobs runs.
create table :GRAPHILE_WORKER_SCHEMA._private_job_queues (
  id integer constraint job_queues_id_not_null not null
    generated always as identity (sequence name :GRAPHILE_WORKER_SCHEMA.job_queues_id_seq),
  queue_name pg_catalog.text constraint job_queues_queue_name_not_null1 not null,
  locked_at pg_catalog.timestamptz,
  locked_by pg_catalog.text,
  is_available boolean constraint job_queues_is_available_not_null not null
    generated always as (locked_at is null) stored,
  constraint job_queues_pkey1 primary key (id),
  constraint job_queues_queue_name_key unique (queue_name),
  constraint job_queues_queue_name_check check (pg_catalog.length(queue_name) <= 128)
);

-- There are no foreign keys, on purpose: checking them would cost row locks on tasks and queues
-- with every job, and the functions below look the ids up anyway.
--
-- The functions return whole rows of this table, so the order of its columns is part of their
-- interface.
create table :GRAPHILE_WORKER_SCHEMA._private_jobs (
  id bigint constraint jobs_id_not_null1 not null
    generated always as identity (sequence name :GRAPHILE_WORKER_SCHEMA.jobs_id_seq1),
  job_queue_id integer,
  task_id integer constraint jobs_task_id_not_null not null,
  -- json and not jsonb: a payload comes back byte for byte as it was given.
  payload pg_catalog.json constraint jobs_payload_not_null1 not null default '{}'::pg_catalog.json,
  priority smallint constraint jobs_priority_not_null1 not null default 0,
  run_at pg_catalog.timestamptz constraint jobs_run_at_not_null1 not null default pg_catalog.now(),
  attempts smallint constraint jobs_attempts_not_null1 not null default 0,
  max_attempts smallint constraint jobs_max_attempts_not_null1 not null default 25,
  last_error pg_catalog.text,
  created_at pg_catalog.timestamptz constraint jobs_created_at_not_null1 not null default pg_catalog.now(),
  updated_at pg_catalog.timestamptz constraint jobs_updated_at_not_null1 not null default pg_catalog.now(),
  key pg_catalog.text,
  locked_at pg_catalog.timestamptz,
  locked_by pg_catalog.text,
  revision integer constraint jobs_revision_not_null1 not null default 0,
  flags pg_catalog.jsonb,
  -- Generated, so that the partial indexes hold exactly the jobs a worker may take.
  is_available boolean constraint jobs_is_available_not_null not null
    generated always as (locked_at is null and attempts < max_attempts) stored,
  constraint jobs_pkey1 primary key (id),
  constraint jobs_key_key1 unique (key),
  constraint jobs_key_check check (pg_catalog.length(key) > 0 and pg_catalog.length(key) <= 512),
  constraint jobs_max_attempts_check check (max_attempts >= 1)
);

-- Both serve the fetch, in its order; the included columns let it choose jobs from the index alone.
create index jobs_main_index
  on :GRAPHILE_WORKER_SCHEMA._private_jobs (priority, run_at)
  include (id, task_id, job_queue_id)
  where (is_available = true);
create index jobs_no_queue_index
  on :GRAPHILE_WORKER_SCHEMA._private_jobs (priority, run_at)
  include (id, task_id)
  where (is_available = true and job_queue_id is null);

-- When each cron item was first seen and last run; what backfilling starts from.
create table :GRAPHILE_WORKER_SCHEMA._private_known_crontabs (
  identifier pg_catalog.text constraint known_crontabs_identifier_not_null not null,
  known_since pg_catalog.timestamptz constraint known_crontabs_known_since_not_null not null,
  last_execution pg_catalog.timestamptz,
  constraint known_crontabs_pkey primary key (identifier)
);

-- Without policies this closes the tables to everybody but their owner and roles that bypass row
-- security.
alter table :GRAPHILE_WORKER_SCHEMA._private_tasks enable row level security;
alter table :GRAPHILE_WORKER_SCHEMA._private_job_queues enable row level security;
alter table :GRAPHILE_WORKER_SCHEMA._private_jobs enable row level security;
alter table :GRAPHILE_WORKER_SCHEMA._private_known_crontabs enable row level security;

-- The public face of the jobs, for people and dashboards. It reads with its owner's rights, so that
-- plain SELECT on it is enough; payloads, which may be confidential, are left out.
create view :GRAPHILE_WORKER_SCHEMA.jobs as
select
  jobs.id,
  job_queues.queue_name,
  tasks.identifier as task_identifier,
  jobs.priority,
  jobs.run_at,
  jobs.attempts,
  jobs.max_attempts,
  jobs.last_error,
  jobs.created_at,
  jobs.updated_at,
  jobs.key,
  jobs.locked_at,
  jobs.locked_by,
  jobs.revision,
  jobs.flags
from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = jobs.task_id
left join :GRAPHILE_WORKER_SCHEMA._private_job_queues as job_queues
  on job_queues.id = jobs.job_queue_id;

-- One job to add. No job key mode: add_jobs has one for the whole batch.
create type :GRAPHILE_WORKER_SCHEMA.job_spec as (
  identifier pg_catalog.text,
  payload pg_catalog.json,
  queue_name pg_catalog.text,
  run_at pg_catalog.timestamptz,
  max_attempts smallint,
  job_key pg_catalog.text,
  priority smallint,
  flags pg_catalog.text[]
);

-- Adds a batch of jobs, or replaces the pending jobs that carry the same keys. Returns the rows
-- written, in no particular order; a job that another transaction locked meanwhile is neither
-- written nor returned.
create function :GRAPHILE_WORKER_SCHEMA.add_jobs(
  specs :GRAPHILE_WORKER_SCHEMA.job_spec[],
  job_key_preserve_run_at boolean default false
)
returns setof :GRAPHILE_WORKER_SCHEMA._private_jobs
language plpgsql
as $function$
begin
  insert into :GRAPHILE_WORKER_SCHEMA._private_tasks (identifier)
  select distinct spec.identifier
  from unnest(specs) as spec
  on conflict do nothing;

  insert into :GRAPHILE_WORKER_SCHEMA._private_job_queues (queue_name)
  select distinct spec.queue_name
  from unnest(specs) as spec
  where spec.queue_name is not null
  on conflict do nothing;

  -- A job that runs or has used up its attempts can't be replaced. It gives its key away, and can't
  -- come back: a running job that fails later would repeat work which the new job does.
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as evicted
  set key = null, attempts = evicted.max_attempts, updated_at = now()
  from unnest(specs) as spec
  where spec.job_key is not null
    and evicted.key = spec.job_key
    and evicted.is_available is not true;

  -- The random number keeps PostgreSQL from folding equal notifications of one transaction into
  -- one; the count, an upper bound, tells listeners how many workers to wake. No jobs, no count:
  -- the payload is then empty.
  perform pg_notify(
    'jobs:insert',
    coalesce('{"r":' || random()::text || ',"count":' || array_length(specs, 1)::text || '}', '')
  );

  return query
  insert into :GRAPHILE_WORKER_SCHEMA._private_jobs as existing (
    job_queue_id, task_id, payload, run_at, max_attempts, key, priority, flags
  )
  select
    job_queues.id,
    tasks.id,
    coalesce(spec.payload, '{}'::json),
    coalesce(spec.run_at, now()),
    coalesce(spec.max_attempts, 25::smallint),
    spec.job_key,
    coalesce(spec.priority, 0::smallint),
    -- An aggregate over no flags is null, so an empty array means no flags.
    (select jsonb_object_agg(flag, true) from unnest(spec.flags) as flag)
  from unnest(specs) as spec
  join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.identifier = spec.identifier
  left join :GRAPHILE_WORKER_SCHEMA._private_job_queues as job_queues
    on job_queues.queue_name = spec.queue_name
  on conflict (key) do update set
    job_queue_id = excluded.job_queue_id,
    task_id = excluded.task_id,
    -- Two arrays are a growing batch; anything else is replaced.
    payload = case
      when json_typeof(existing.payload) = 'array' and json_typeof(excluded.payload) = 'array'
      then (existing.payload::jsonb || excluded.payload::jsonb)::json
      else excluded.payload
    end,
    -- A job that has failed waits for its retry, a time nobody asked for and nobody wants
    -- preserved.
    run_at = case
      when job_key_preserve_run_at and existing.attempts = 0 then existing.run_at
      else excluded.run_at
    end,
    max_attempts = excluded.max_attempts,
    priority = excluded.priority,
    flags = excluded.flags,
    attempts = 0,
    last_error = null,
    revision = existing.revision + 1,
    updated_at = now()
  -- Locked since the eviction above: a worker has it, and no snapshot could have told us.
  where existing.locked_at is null
  returning *;
end;
$function$;

-- Adds one job. Returns its row, or a row of nulls if a worker took the job with this key at the
-- same moment; callers then ask again.
create function :GRAPHILE_WORKER_SCHEMA.add_job(
  identifier pg_catalog.text,
  payload pg_catalog.json default null::pg_catalog.json,
  queue_name pg_catalog.text default null::pg_catalog.text,
  run_at pg_catalog.timestamptz default null::pg_catalog.timestamptz,
  max_attempts integer default null::integer,
  job_key pg_catalog.text default null::pg_catalog.text,
  priority integer default null::integer,
  flags pg_catalog.text[] default null::pg_catalog.text[],
  job_key_mode pg_catalog.text default 'replace'::pg_catalog.text
)
returns :GRAPHILE_WORKER_SCHEMA._private_jobs
language plpgsql
as $function$
-- Most parameters share their names with columns: parameters are written add_job.x, columns
-- table.x.
declare
  job :GRAPHILE_WORKER_SCHEMA._private_jobs;
begin
  -- Without a key the mode has no meaning, and any text passes.
  if job_key is null or job_key_mode is null or job_key_mode in ('replace', 'preserve_run_at') then
    select * into job
    from :GRAPHILE_WORKER_SCHEMA.add_jobs(
      array[cast(row(
        add_job.identifier,
        add_job.payload,
        add_job.queue_name,
        add_job.run_at,
        add_job.max_attempts::smallint,
        add_job.job_key,
        add_job.priority::smallint,
        add_job.flags
      ) as :GRAPHILE_WORKER_SCHEMA.job_spec)],
      job_key_mode = 'preserve_run_at'
    );
    return job;
  end if;

  if job_key_mode <> 'unsafe_dedupe' then
    raise exception
      'job_key_mode is %, but must be replace, preserve_run_at or unsafe_dedupe',
      quote_literal(job_key_mode)
      using errcode = 'GWBKM';
  end if;

  insert into :GRAPHILE_WORKER_SCHEMA._private_tasks (identifier)
  values (add_job.identifier)
  on conflict do nothing;

  if add_job.queue_name is not null then
    insert into :GRAPHILE_WORKER_SCHEMA._private_job_queues (queue_name)
    values (add_job.queue_name)
    on conflict do nothing;
  end if;

  -- Whatever holds the key wins, even a job that will never run again: hence unsafe.
  insert into :GRAPHILE_WORKER_SCHEMA._private_jobs as existing (
    job_queue_id, task_id, payload, run_at, max_attempts, key, priority, flags
  )
  select
    job_queues.id,
    tasks.id,
    coalesce(add_job.payload, '{}'::json),
    coalesce(add_job.run_at, now()),
    coalesce(add_job.max_attempts::smallint, 25::smallint),
    add_job.job_key,
    coalesce(add_job.priority::smallint, 0::smallint),
    (select jsonb_object_agg(flag, true) from unnest(add_job.flags) as flag)
  from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
  left join :GRAPHILE_WORKER_SCHEMA._private_job_queues as job_queues
    on job_queues.queue_name = add_job.queue_name
  where tasks.identifier = add_job.identifier
  on conflict (key) do update set
    revision = existing.revision + 1,
    updated_at = now()
  returning * into job;

  -- A repeated request wakes nobody.
  if job.revision = 0 then
    perform pg_notify('jobs:insert', '{"r":' || random()::text || ',"count":1}');
  end if;

  return job;
end;
$function$;

-- Everything below leaves a locked job alone, as it is running; except after four hours, when its
-- worker is taken for dead. No notification is sent for jobs made available again: polling finds
-- them.

-- Deletes the job with this key. A running one can't be taken back: it loses the key and its
-- further attempts.
create function :GRAPHILE_WORKER_SCHEMA.remove_job(job_key pg_catalog.text)
returns :GRAPHILE_WORKER_SCHEMA._private_jobs
language plpgsql
strict
as $function$
declare
  job :GRAPHILE_WORKER_SCHEMA._private_jobs;
begin
  delete from :GRAPHILE_WORKER_SCHEMA._private_jobs as removed
  where removed.key = remove_job.job_key
    and (removed.locked_at is null or removed.locked_at < now() - interval '4 hours')
  returning * into job;

  if found then
    perform pg_notify('jobs:insert', '{"r":' || random()::text || ',"count":-1}');
    return job;
  end if;

  update :GRAPHILE_WORKER_SCHEMA._private_jobs as running
  set key = null, attempts = running.max_attempts, updated_at = now()
  where running.key = remove_job.job_key
  returning * into job;

  return job;
end;
$function$;

-- Deletes jobs as if they had succeeded.
create function :GRAPHILE_WORKER_SCHEMA.complete_jobs(job_ids bigint[])
returns setof :GRAPHILE_WORKER_SCHEMA._private_jobs
language sql
as $function$
  delete from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.id = any (complete_jobs.job_ids)
    and (jobs.locked_at is null or jobs.locked_at < now() - interval '4 hours')
  returning *;
$function$;

-- Uses up all attempts of the jobs, so that they are kept but never run.
create function :GRAPHILE_WORKER_SCHEMA.permanently_fail_jobs(
  job_ids bigint[],
  error_message pg_catalog.text default null::pg_catalog.text
)
returns setof :GRAPHILE_WORKER_SCHEMA._private_jobs
language sql
as $function$
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  set
    last_error = coalesce(permanently_fail_jobs.error_message, 'Manually marked as failed'),
    attempts = jobs.max_attempts,
    updated_at = now()
  where jobs.id = any (permanently_fail_jobs.job_ids)
    and (jobs.locked_at is null or jobs.locked_at < now() - interval '4 hours')
  returning *;
$function$;

-- Changes what is given and leaves what is null.
create function :GRAPHILE_WORKER_SCHEMA.reschedule_jobs(
  job_ids bigint[],
  run_at pg_catalog.timestamptz default null::pg_catalog.timestamptz,
  priority integer default null::integer,
  attempts integer default null::integer,
  max_attempts integer default null::integer
)
returns setof :GRAPHILE_WORKER_SCHEMA._private_jobs
language sql
as $function$
  -- An unqualified name would mean the column, not the parameter.
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  set
    run_at = coalesce(reschedule_jobs.run_at, jobs.run_at),
    priority = coalesce(reschedule_jobs.priority::smallint, jobs.priority),
    attempts = coalesce(reschedule_jobs.attempts::smallint, jobs.attempts),
    max_attempts = coalesce(reschedule_jobs.max_attempts::smallint, jobs.max_attempts),
    updated_at = now()
  where jobs.id = any (reschedule_jobs.job_ids)
    and (jobs.locked_at is null or jobs.locked_at < now() - interval '4 hours')
  returning *;
$function$;

-- Frees what dead workers hold. An operator's tool: a worker that still lives would lose its jobs
-- to others.
create function :GRAPHILE_WORKER_SCHEMA.force_unlock_workers(worker_ids pg_catalog.text[])
returns void
language sql
as $function$
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  set locked_at = null, locked_by = null
  where jobs.locked_by = any (force_unlock_workers.worker_ids);

  update :GRAPHILE_WORKER_SCHEMA._private_job_queues as job_queues
  set locked_at = null, locked_by = null
  where job_queues.locked_by = any (force_unlock_workers.worker_ids);
$function$;
