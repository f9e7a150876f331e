"""What the system catalog says about a schema, in a form that two databases can be compared in."""

from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row
from psycopg.sql import Identifier

# Rows are taken whole, so that a property PostgreSQL adds in a later version is compared too. Left
# out are the numbers that differ between any two databases, statistics, and the bodies of
# functions. What refers to another object by number is replaced by its name.
QUERIES: dict[str, LiteralString] = {
    "schema": """
        select nspname, nspowner::regrole::text as owner, nspacl::text as acl
        from pg_namespace
        where nspname = %(schema)s
    """,
    "relations": """
        select
          relname,
          relowner::regrole::text as owner,
          amname,
          reltype <> 0 as has_row_type,
          reltoastrelid <> 0 as has_toast,
          to_jsonb(c) - array[
            'oid', 'relname', 'relnamespace', 'reltype', 'relowner', 'relam', 'relfilenode',
            'reltoastrelid', 'relpages', 'reltuples', 'relallvisible', 'relallfrozen',
            'relfrozenxid', 'relminmxid',
            -- Stays true when the last trigger is gone, until VACUUM looks. Node had triggers once.
            'relhastriggers'
          ] as properties
        from pg_class as c
        left join pg_am on pg_am.oid = relam
        where relnamespace = to_regnamespace(quote_ident(%(schema)s))
    """,
    "columns": """
        select
          relname,
          attname,
          format_type(atttypid, atttypmod) as type,
          pg_get_expr(adbin, adrelid) as default_or_generated,
          -- Whether a column was added to an existing table shows here, and nowhere else.
          to_jsonb(a) - array['attrelid', 'atttypid', 'atthasmissing', 'attmissingval']
            as properties
        from pg_attribute as a
        join pg_class as c on c.oid = attrelid
        left join pg_attrdef on adrelid = attrelid and adnum = attnum
        where relnamespace = to_regnamespace(quote_ident(%(schema)s)) and attnum > 0
    """,
    "constraints": """
        select
          conname,
          conrelid::regclass::text as relation,
          conindid::regclass::text as index,
          pg_get_constraintdef(con.oid) as definition,
          to_jsonb(con) - array[
            'oid', 'connamespace', 'conrelid', 'conindid', 'conbin', 'conpfeqop', 'conppeqop',
            'conffeqop', 'conexclop'
          ] as properties
        from pg_constraint as con
        where connamespace = to_regnamespace(quote_ident(%(schema)s))
    """,
    "indexes": """
        select
          pg_get_indexdef(indexrelid) as definition,
          to_jsonb(i) - array['indexrelid', 'indrelid', 'indexprs', 'indpred', 'indclass']
            as properties
        from pg_index as i
        join pg_class as c on c.oid = indexrelid
        where relnamespace = to_regnamespace(quote_ident(%(schema)s))
    """,
    "sequences": """
        select
          relname,
          refobjid::regclass::text as owner,
          attname as owner_column,
          deptype,
          format_type(seqtypid, null) as type,
          to_jsonb(s) - array['seqrelid', 'seqtypid'] as properties
        from pg_sequence as s
        join pg_class as c on c.oid = seqrelid
        left join pg_depend
          on classid = 'pg_class'::regclass and objid = seqrelid
          and refclassid = 'pg_class'::regclass
        left join pg_attribute on attrelid = refobjid and attnum = refobjsubid
        where relnamespace = to_regnamespace(quote_ident(%(schema)s))
    """,
    "types": """
        select
          typname,
          typowner::regrole::text as owner,
          typrelid::regclass::text as relation,
          format_type(typelem, null) as element,
          to_jsonb(t) - array[
            'oid', 'typname', 'typnamespace', 'typowner', 'typrelid', 'typelem', 'typarray'
          ] as properties
        from pg_type as t
        where typnamespace = to_regnamespace(quote_ident(%(schema)s))
    """,
    "functions": """
        select
          proname,
          proowner::regrole::text as owner,
          lanname,
          pg_get_function_arguments(p.oid) as arguments,
          pg_get_function_result(p.oid) as result,
          to_jsonb(p) - array[
            'oid', 'proname', 'pronamespace', 'proowner', 'prolang', 'proargtypes', 'prorettype',
            'proallargtypes', 'proargdefaults', 'prosrc'
          ] as properties
        from pg_proc as p
        join pg_language as l on l.oid = prolang
        where pronamespace = to_regnamespace(quote_ident(%(schema)s))
    """,
    "views": """
        select relname, pg_get_viewdef(oid) as definition
        from pg_class
        where relnamespace = to_regnamespace(quote_ident(%(schema)s)) and relkind in ('v', 'm')
    """,
    "triggers": """
        select pg_get_triggerdef(t.oid) as definition, tgenabled
        from pg_trigger as t
        join pg_class as c on c.oid = tgrelid
        where relnamespace = to_regnamespace(quote_ident(%(schema)s))
    """,
    "rules": """
        select pg_get_ruledef(r.oid) as definition, ev_enabled
        from pg_rewrite as r
        join pg_class as c on c.oid = ev_class
        where relnamespace = to_regnamespace(quote_ident(%(schema)s))
    """,
    "policies": """
        select to_jsonb(pol) - array['oid', 'polrelid'] as properties, relname
        from pg_policy as pol
        join pg_class as c on c.oid = polrelid
        where relnamespace = to_regnamespace(quote_ident(%(schema)s))
    """,
    "statistics": """
        select pg_get_statisticsobjdef(oid) as definition
        from pg_statistic_ext
        where stxnamespace = to_regnamespace(quote_ident(%(schema)s))
    """,
    "comments": """
        select type, identity, description
        from pg_description, pg_identify_object(classoid, objoid, objsubid)
        where schema = quote_ident(%(schema)s)
          or (type = 'schema' and name = quote_ident(%(schema)s))
    """,
    "default privileges": """
        select defaclobjtype, defaclacl::text
        from pg_default_acl
        where defaclnamespace = to_regnamespace(quote_ident(%(schema)s))
    """,
    "migrations": "select id, breaking from :GRAPHILE_WORKER_SCHEMA.migrations",
}


def read_catalog(dsn: str, schema: str = "graphile_worker") -> dict[str, list[str]]:
    """Every property of every object in the schema, one text per object, sorted."""
    found: dict[str, list[str]] = {}
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        # Names are printed with their schema, unless it is on the search path.
        connection.execute("select set_config('search_path', '', false)")
        quoted = Identifier(schema).as_string(connection)
        for kind, query in QUERIES.items():
            text = query.replace(":GRAPHILE_WORKER_SCHEMA", quoted).encode()
            found[kind] = sorted(_line(row) for row in connection.execute(text, {"schema": schema}))
    return found


def _line(row: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in row.items())
