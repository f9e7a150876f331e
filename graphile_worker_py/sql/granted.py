"""Which rights the role of a connection has in a schema, and which rows it can see there."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record


class Rights(Record):
    """The rights of a role.

    Args:
        role: Name of the role.
        owner: Name of the schema's owner.
        may_use: Whether it may use the schema.
        lacking: Which of the needed privileges it lacks, by table.
        hidden: Tables of which it sees no rows: they have row-level security, and no policy for it.
    """

    role: str
    owner: str
    may_use: bool
    lacking: Mapping[str, Sequence[str]]
    hidden: Sequence[str]


# Reads only the catalogs, which every role may read. Tables are identified by oid, so that a schema
# that the role may not use is no error.
_READ: Final = """
with tables as materialized (
  select classes.oid, classes.relname::pg_catalog.text as name
  from pg_catalog.pg_class as classes
  join pg_catalog.pg_namespace as namespaces on namespaces.oid = classes.relnamespace
  where namespaces.nspname = $1::pg_catalog.text and classes.relkind = 'r'
),
lacking as (
  select needed.place, needed.name, needed.privilege
  from rows from (
    pg_catalog.unnest($2::pg_catalog.text[]),
    pg_catalog.unnest($3::pg_catalog.text[])
  ) with ordinality as needed (name, privilege, place)
  join tables on tables.name = needed.name
  where not pg_catalog.has_table_privilege(tables.oid, needed.privilege)
)
select
  current_user::pg_catalog.text,
  pg_catalog.pg_get_userbyid(namespaces.nspowner)::pg_catalog.text,
  pg_catalog.has_schema_privilege(namespaces.oid, 'usage'),
  array(select lacking.name from lacking order by lacking.place),
  array(select lacking.privilege from lacking order by lacking.place),
  array(
    select tables.name
    from tables
    where pg_catalog.row_security_active(tables.oid)
      and not exists (
        select
        from pg_catalog.pg_policy as policies, pg_catalog.unnest(policies.polroles) as roles (oid)
        where policies.polrelid = tables.oid
          and case
            when roles.oid = 0::pg_catalog.oid then true
            else pg_catalog.pg_has_role(roles.oid, 'usage')
          end
      )
    order by tables.name
  )
from pg_catalog.pg_namespace as namespaces
where namespaces.nspname = $1::pg_catalog.text
"""


def read_rights(schema: str, needed: Mapping[str, Sequence[str]]) -> Query[Rights | None]:
    """Read what a role lacks in a schema; None if there is no such schema.

    Args:
        schema: Name of the schema.
        needed: The privileges that it needs, by table. Missing tables are skipped.
    """
    wanted = [(table, privilege) for table, all_ in needed.items() for privilege in all_]
    values = (schema, [table for table, _ in wanted], [privilege for _, privilege in wanted])
    return Query(_READ, values, _read, prepare=False)


def _read(rows: list[tuple[Any, ...]]) -> Rights | None:
    if not rows:
        return None
    ((role, owner, may_use, tables, privileges, hidden),) = rows
    lacking: dict[str, list[str]] = {}
    for table, privilege in zip(tables, privileges, strict=True):
        lacking.setdefault(table, []).append(privilege)
    return Rights(role=role, owner=owner, may_use=may_use, lacking=lacking, hidden=hidden)
