-- Adding a job no longer consumes ids of tasks and queues whose names are already known.
--
-- An insert that ends in ON CONFLICT DO NOTHING has taken its number from the sequence before it
-- finds the conflict, and tasks and queues are numbered with integers: two thousand million added
-- jobs, and adding fails for good. So both functions look first. Their results stay the same.

create or replace function :GRAPHILE_WORKER_SCHEMA.add_jobs(
  specs :GRAPHILE_WORKER_SCHEMA.job_spec[],
  job_key_preserve_run_at boolean default false
)
returns setof :GRAPHILE_WORKER_SCHEMA._private_jobs
language plpgsql
as $function$
begin
  -- Looking first is not enough: another transaction may add the same name in between.
  insert into :GRAPHILE_WORKER_SCHEMA._private_tasks (identifier)
  select distinct spec.identifier
  from unnest(specs) as spec
  where not exists (
    select from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
    where tasks.identifier = spec.identifier
  )
  on conflict do nothing;

  insert into :GRAPHILE_WORKER_SCHEMA._private_job_queues (queue_name)
  select distinct spec.queue_name
  from unnest(specs) as spec
  where spec.queue_name is not null
    and not exists (
      select from :GRAPHILE_WORKER_SCHEMA._private_job_queues as job_queues
      where job_queues.queue_name = spec.queue_name
    )
  on conflict do nothing;

  -- From here on as in revision 18.

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

create or replace function :GRAPHILE_WORKER_SCHEMA.add_job(
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
  select add_job.identifier
  where not exists (
    select from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
    where tasks.identifier = add_job.identifier
  )
  on conflict do nothing;

  insert into :GRAPHILE_WORKER_SCHEMA._private_job_queues (queue_name)
  select add_job.queue_name
  where add_job.queue_name is not null
    and not exists (
      select from :GRAPHILE_WORKER_SCHEMA._private_job_queues as job_queues
      where job_queues.queue_name = add_job.queue_name
    )
  on conflict do nothing;

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
