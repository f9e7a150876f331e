"""Which roles could run code as ours in a schema, because they own it or a part of it."""

from collections.abc import Sequence
from typing import Final

from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record

# Reads only the catalogs: reading a table or view of the schema might run code of its owner.
# Memberships are followed here because pg_has_role says yes to superusers for every role.
_READ: Final = """
with recursive memberships (role) as (
  select roles.oid from pg_catalog.pg_roles as roles where roles.rolname = current_user
  union
  select members.roleid
  from memberships
  join pg_catalog.pg_auth_members as members on members.member = memberships.role
),
trusted as materialized (
  select roles.oid
  from pg_catalog.pg_roles as roles
  where roles.rolsuper
    or roles.rolname = 'pg_database_owner'
    or roles.oid in (select memberships.role from memberships)
    or roles.oid in (
      select databases.datdba
      from pg_catalog.pg_database as databases
      where databases.datname = pg_catalog.current_database()
    )
    or roles.oid in (
      select namespaces.nspowner
      from pg_catalog.pg_namespace as namespaces
      where namespaces.nspname = $2::pg_catalog.text
    )
),
namespace as materialized (
  select namespaces.oid, namespaces.nspowner
  from pg_catalog.pg_namespace as namespaces
  where namespaces.nspname = $1::pg_catalog.text
),
relations as materialized (
  select classes.oid, classes.relname, classes.relkind, classes.relowner
  from pg_catalog.pg_class as classes
  join namespace on namespace.oid = classes.relnamespace
  where classes.relkind in ('r', 'p', 'v', 'm', 'f')
),
functions as materialized (
  select procedures.oid
  from pg_catalog.pg_proc as procedures
  join namespace on namespace.oid = procedures.pronamespace
  where procedures.proowner in (select trusted.oid from trusted)
)
select 'schema', null, null, pg_catalog.pg_get_userbyid(namespace.nspowner)::pg_catalog.text
from namespace
where namespace.nspowner not in (select trusted.oid from trusted)
union all
select
  'table',
  null,
  relations.relname::pg_catalog.text,
  pg_catalog.pg_get_userbyid(relations.relowner)::pg_catalog.text
from relations
where relations.relowner not in (select trusted.oid from trusted)
union all
select 'trigger', triggers.tgname::pg_catalog.text, relations.relname::pg_catalog.text, null
from relations
join pg_catalog.pg_trigger as triggers on triggers.tgrelid = relations.oid
where not triggers.tgisinternal
  and triggers.tgfoid not in (select functions.oid from functions)
union all
select 'rule', rules.rulename::pg_catalog.text, relations.relname::pg_catalog.text, null
from relations
join pg_catalog.pg_rewrite as rules on rules.ev_class = relations.oid
where relations.relkind in ('r', 'p')
order by 1, 2, 3
"""


class Stranger(Record, kw_only=False):
    """A part of a schema that is not trusted.

    Args:
        kind: `schema`, `table`, `trigger` or `rule`.
        name: Name of the trigger or rule.
        table: Name of the table, or of the trigger's or rule's table.
        owner: The role that owns the schema or table.
    """

    kind: str
    name: str | None
    table: str | None
    owner: str | None

    def __str__(self) -> str:
        match self.kind:
            case "schema":
                return f"it belongs to the role {self.owner!r}"
            case "table":
                return f"its table {self.table!r} belongs to the role {self.owner!r}"
            case _:
                return f"there is a {self.kind} {self.name!r} on the table {self.table!r}"


def untrusted(schema: str, strangers: Sequence[Stranger]) -> str:
    """Say why a schema is not to be trusted, and what to do."""
    return (
        f"schema {schema!r} is not to be trusted: {'; '.join(map(str, strangers[:3]))}. Drop "
        f"it if you did not make it, or give it to a superuser or to the owner of the database"
    )


def read_strangers(schema: str, *, beside: str | None = None) -> Query[list[Stranger]]:
    """Read the parts of a schema that are not trusted.

    An owner is trusted if it is a superuser, the owner of the database or of the schema `beside`,
    or a role that ours is a member of. A trigger is trusted if it calls a function of the same
    schema that has such an owner: the first revisions of Graphile Worker have some, and Node
    installs one revision after the other. Rules are never trusted.
    """
    return Query(
        _READ,
        (schema, beside),
        lambda rows: [Stranger(*row) for row in rows],
        prepare=False,
        lasts=10.0,
    )
