"""What the role of a connection may do in a schema, and which rows it can see there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from graphile_worker_py.postgres.query import Query


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What a role lacks.

    Args:
        role: Its name.
        owner: Name of the schema's owner.
        may_use: Whether it may use the schema at all.
        lacking: What it may not do with which table, of what was asked for.
        hidden: Tables of whose rows it sees none: row-level security, and no policy for it.
    """

    role: str
    owner: str
    may_use: bool
    lacking: Mapping[str, Sequence[str]]
    hidden: Sequence[str]


# Of the catalogs alone, which every role may read. Tables are looked for by their oid, so that a
# schema on which the role has no rights is no error.
_READ: Final = """
with tables as materialized (
  select classes.oid, classes.relname::text as name
  from pg_catalog.pg_class as classes
  join pg_catalog.pg_namespace as namespaces on namespaces.oid = classes.relnamespace
  where namespaces.nspname = $1::text and classes.relkind = 'r'
),
lacking as (
  select needed.place, needed.name, needed.privilege
  from unnest($2::text[], $3::text[]) with ordinality as needed (name, privilege, place)
  join tables on tables.name = needed.name
  where not has_table_privilege(tables.oid, needed.privilege)
)
select
  current_user::text,
  pg_get_userbyid(namespaces.nspowner)::text,
  has_schema_privilege(namespaces.oid, 'usage'),
  array(select lacking.name from lacking order by lacking.place),
  array(select lacking.privilege from lacking order by lacking.place),
  array(
    select tables.name
    from tables
    where row_security_active(tables.oid)
      and not exists (
        select
        from pg_catalog.pg_policy as policies, unnest(policies.polroles) as roles (oid)
        where policies.polrelid = tables.oid
          and case when roles.oid = 0 then true else pg_has_role(roles.oid, 'usage') end
      )
    order by tables.name
  )
from pg_catalog.pg_namespace as namespaces
where namespaces.nspname = $1::text
"""


def read_rights(schema: str, needed: Mapping[str, Sequence[str]]) -> Query[Rights | None]:
    """Read what a role lacks in a schema; None if there is no such schema.

    Args:
        schema: Name of the schema.
        needed: What is to be done with which table. Tables that are not there are passed over.
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
