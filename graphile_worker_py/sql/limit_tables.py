"""The tables of limits in the side schema, and the functions that give out permits and tokens."""

from collections.abc import Sequence
from typing import Final, LiteralString

LEAF: Final = "limits"
"""Name under which the tables are registered in the side schema."""

# limits: a row for each limit of jobs at once. `in_use` is the sum of the permits of all pools. It
#   changes only together with them, under the row's lock. `set_amount` is the operator's number.
# limit_permits: what each pool holds of a limit, and how many permits it could use. `declared` is
#   the number in the code of that pool. A row counts as long as the row of its pool says that the
#   jobs of the pool are not freed yet: it ends in the same commit as their locks.
_LIMITS: Final = """
create table graphile_worker_py.limits (
  worker_schema pg_catalog.text not null,
  name pg_catalog.text not null,
  tasks pg_catalog.text[] not null,
  amount pg_catalog.int4 not null,
  in_use pg_catalog.int4 not null default 0,
  set_amount pg_catalog.int4,
  set_at pg_catalog.timestamptz,
  primary key (worker_schema, name)
) with (fillfactor = 50)
"""
_PERMITS: Final = """
create table graphile_worker_py.limit_permits (
  worker_schema pg_catalog.text not null,
  name pg_catalog.text not null,
  pool_id pg_catalog.text not null,
  declared pg_catalog.int4 not null,
  permits pg_catalog.int4 not null default 0,
  wants pg_catalog.int4 not null default 0,
  primary key (worker_schema, name, pool_id)
) with (fillfactor = 50)
"""

# limit_rates: a row for each rate. `full_at` is GCRA's theoretical arrival time: when all tokens
#   will be back, in seconds since 1970 by the database's clock. `reset_at` is when it last was in
#   the past. `declared_at` is when a pool with these numbers last asked.
_RATES: Final = """
create table graphile_worker_py.limit_rates (
  worker_schema pg_catalog.text not null,
  name pg_catalog.text not null,
  tasks pg_catalog.text[] not null,
  rate pg_catalog.float8 not null,
  per pg_catalog.float8 not null,
  burst pg_catalog.int4 not null,
  declared_at pg_catalog.float8 not null default 0,
  set_rate pg_catalog.float8,
  set_at pg_catalog.timestamptz,
  full_at pg_catalog.float8 not null default 0,
  reset_at pg_catalog.float8 not null default 0,
  primary key (worker_schema, name)
) with (fillfactor = 50)
"""

# The row of the limit is locked by a statement of its own. The statements after it see what was
# committed before they began, so nothing that was granted meanwhile is missed: a count in the
# statement that waits for the lock would miss it. In a session that reads from one snapshot the
# lock fails instead, because each grant changes the row.
# `wanted` is how many permits the pool wants to have now, `wants` how many it could use in all.
# A pool that other pools have declared dead gets nothing, and keeps what it has until its jobs are
# freed. The pools that wait are told when permits are given back; those that may hold idle ones,
# when one begins to wait.
_TAKE_PERMITS: Final = """
create function graphile_worker_py.take_permits(
  of_schema pg_catalog.text, of_name pg_catalog.text, of_pool pg_catalog.text,
  of_tasks pg_catalog.text[], of_declared pg_catalog.int4,
  wanted pg_catalog.int4, wants pg_catalog.int4,
  out permits pg_catalog.int4, out amount pg_catalog.int4, out in_use pg_catalog.int4,
  out waiting pg_catalog.int4, out claimants pg_catalog.int4,
  out least_declared pg_catalog.int4, out most_declared pg_catalog.int4,
  out is_set pg_catalog.bool
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  the_limit graphile_worker_py.limits%rowtype;
  had int4;
  wanted_before int4;
  of_others int4;
begin
  loop
    select * into the_limit from graphile_worker_py.limits as limits
    where limits.worker_schema = of_schema and limits.name = of_name
    for update;
    exit when found;
    insert into graphile_worker_py.limits (worker_schema, name, tasks, amount)
    values (of_schema, of_name, of_tasks, of_declared)
    on conflict (worker_schema, name) do nothing;
  end loop;
  delete from graphile_worker_py.limit_permits as held
  where held.worker_schema = of_schema and held.name = of_name
    and held.pool_id <> of_pool
    and not exists (
      select from graphile_worker_py.pools as pools
      where pools.pool_id = held.pool_id and pools.unlocked_at is null
    );
  select held.permits, held.wants into had, wanted_before
  from graphile_worker_py.limit_permits as held
  where held.worker_schema = of_schema and held.name = of_name and held.pool_id = of_pool;
  if not exists (
    select from graphile_worker_py.pools as pools
    where pools.pool_id = of_pool and pools.died_at is null
  ) then
    wanted := least(wanted, coalesce(had, 0));
    wants := 0;
  end if;
  insert into graphile_worker_py.limit_permits as held (worker_schema, name, pool_id, declared)
  values (of_schema, of_name, of_pool, of_declared)
  on conflict (worker_schema, name, pool_id) do update set declared = of_declared
  where held.declared <> of_declared;
  select coalesce(sum(held.permits) filter (where held.pool_id <> of_pool), 0),
    count(*) filter (where held.pool_id <> of_pool and held.wants > held.permits),
    count(*) filter (where held.pool_id <> of_pool and held.wants > 0)
      + case when take_permits.wants > 0 then 1 else 0 end,
    min(held.declared), max(held.declared)
  into of_others, waiting, claimants, least_declared, most_declared
  from graphile_worker_py.limit_permits as held
  where held.worker_schema = of_schema and held.name = of_name;
  had := coalesce(had, 0);
  is_set := the_limit.set_amount is not null;
  amount := coalesce(the_limit.set_amount, least_declared);
  permits := greatest(
    least(wanted, had), least(wanted, amount - of_others), 0
  );
  in_use := of_others + permits;
  update graphile_worker_py.limit_permits as held
  set permits = take_permits.permits, wants = take_permits.wants
  where held.worker_schema = of_schema and held.name = of_name and held.pool_id = of_pool
    and (held.permits, held.wants) is distinct from (take_permits.permits, take_permits.wants);
  update graphile_worker_py.limits as limits
  set amount = take_permits.amount, in_use = take_permits.in_use,
    tasks = case when limits.tasks @> of_tasks then limits.tasks
      else array(select distinct unnest(limits.tasks || of_tasks) order by 1) end
  where limits.worker_schema = of_schema and limits.name = of_name
    and ((limits.amount, limits.in_use) is distinct from (take_permits.amount, take_permits.in_use)
      or not limits.tasks @> of_tasks);
  if (permits < had and waiting > 0)
    or (permits < wants and coalesce(wanted_before, 0) <= had and of_others > 0)
  then
    perform pg_notify('graphile_worker_py', json_build_object(
      's', of_schema, 't', 'limit', 'n', of_name, 'p', of_pool
    )::text);
  end if;
end
$$
"""

# GCRA: a start moves `full_at` by the time in which one token comes back, and it may be at most the
# burst away. Of two versions with different numbers the slower one counts, until none has asked
# with it for a minute. A time too far ahead, after a step of the clock, is not believed. Jobs start
# a few milliseconds after their tokens were taken: of a fast rate, the tokens of 20 ms are left out
# of the burst.
# `wait` is in how many seconds the next token comes, `step` the seconds that a token takes.
_TAKE_TOKENS: Final = """
create function graphile_worker_py.take_tokens(
  of_schema pg_catalog.text, of_name pg_catalog.text, of_tasks pg_catalog.text[],
  of_rate pg_catalog.float8, of_per pg_catalog.float8, of_burst pg_catalog.int4,
  wanted pg_catalog.int4,
  out granted pg_catalog.int4, out wait pg_catalog.float8, out step pg_catalog.float8,
  out taken_after pg_catalog.float8, out differs pg_catalog.bool
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  the_rate graphile_worker_py.limit_rates%rowtype;
  this_moment float8;
  free_from float8;
  saved int4;
begin
  loop
    select * into the_rate from graphile_worker_py.limit_rates as rates
    where rates.worker_schema = of_schema and rates.name = of_name
    for update;
    exit when found;
    insert into graphile_worker_py.limit_rates (worker_schema, name, tasks, rate, per, burst)
    values (of_schema, of_name, of_tasks, of_rate, of_per, of_burst)
    on conflict (worker_schema, name) do nothing;
  end loop;
  this_moment := extract(epoch from clock_timestamp())::float8;
  if (of_rate / of_per, of_burst) <= (the_rate.rate / the_rate.per, the_rate.burst)
    or the_rate.declared_at < this_moment - 60
    or the_rate.declared_at > this_moment + 60
  then
    the_rate.rate := of_rate;
    the_rate.per := of_per;
    the_rate.burst := of_burst;
    the_rate.declared_at := this_moment;
  end if;
  differs := the_rate.set_rate is null
    and (the_rate.rate, the_rate.per, the_rate.burst) is distinct from (of_rate, of_per, of_burst);
  if coalesce(the_rate.set_rate, the_rate.rate) <= 0 then
    granted := 0;
    wait := 1;
    step := 0;
  else
    step := the_rate.per / coalesce(the_rate.set_rate, the_rate.rate);
    saved := the_rate.burst - least(floor(0.02 / step), the_rate.burst / 4)::int4;
    the_rate.full_at := least(the_rate.full_at, this_moment + the_rate.burst * step);
    if the_rate.full_at < this_moment then
      the_rate.full_at := this_moment;
      the_rate.reset_at := this_moment;
    end if;
    granted := greatest(0, least(wanted, floor(
      (this_moment + saved * step - the_rate.full_at) / step + 1e-6
    )::int4));
    the_rate.full_at := the_rate.full_at + granted * step;
    free_from := the_rate.full_at - (saved - 1) * step;
    wait := greatest(0, free_from - this_moment);
  end if;
  taken_after := the_rate.reset_at;
  update graphile_worker_py.limit_rates as rates
  set rate = the_rate.rate, per = the_rate.per, burst = the_rate.burst,
    declared_at = the_rate.declared_at, full_at = the_rate.full_at, reset_at = the_rate.reset_at,
    tasks = case when rates.tasks @> of_tasks then rates.tasks
      else array(select distinct unnest(rates.tasks || of_tasks) order by 1) end
  where rates.worker_schema = of_schema and rates.name = of_name;
end
$$
"""

# breakers: those that a worker pool has had. One is closed without `open_until`; one whose time is
#   over lets one job through, of the pool `probe_by`, as long as that pool lives. `failures` have
#   opened it since `opened_at`, and kept it open.
_BREAKERS: Final = """
create table graphile_worker_py.breakers (
  worker_schema pg_catalog.text not null,
  name pg_catalog.text not null,
  tasks pg_catalog.text[] not null,
  open_until pg_catalog.timestamptz,
  reason pg_catalog.text,
  probe_by pg_catalog.text,
  primary key (worker_schema, name)
) with (fillfactor = 50)
"""
_BREAKERS_OPENED: Final = """
alter table graphile_worker_py.breakers
  add column opened_at pg_catalog.timestamptz,
  add column failures pg_catalog.int4 not null default 0
"""

# limits.key: what a limit tells jobs apart by; null where it counts all jobs together.
# limit_leases: the value of each job that runs under such a limit. A row counts as long as its job
#   is locked by its pool, so nothing has to be done when a job ends, or is unlocked by whomever.
#   The next fetch deletes the row.
_KEYS: Final = "alter table graphile_worker_py.limits add column key pg_catalog.text"
_LEASES: Final = """
create table graphile_worker_py.limit_leases (
  worker_schema pg_catalog.text not null,
  name pg_catalog.text not null,
  job_id pg_catalog.int8 not null,
  key pg_catalog.text not null,
  pool_id pg_catalog.text not null,
  primary key (worker_schema, name, job_id)
) with (fillfactor = 50)
"""

# Payloads are of type json, which may hold escapes that no text can: U+0000, half a surrogate pair.
_LIMIT_KEY: Final = """
create function graphile_worker_py.limit_key(payload pg_catalog.json, path pg_catalog.text[])
returns pg_catalog.text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return json_extract_path_text(payload, variadic path);
exception when data_exception or feature_not_supported then
  return null;
end
$$
"""

MIGRATIONS: Final[Sequence[Sequence[LiteralString]]] = (
    (_LIMITS, _PERMITS, _RATES, _TAKE_PERMITS, _TAKE_TOKENS),
    (_BREAKERS,),
    (_BREAKERS_OPENED, _KEYS, _LEASES, _LIMIT_KEY),
)
