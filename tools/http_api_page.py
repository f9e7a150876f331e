"""Write the tables of calls in `docs/http-api.md` from the OpenAPI document.

Run it as `python -m tools.http_api_page` after the API has changed.
"""

from pathlib import Path
from typing import Any

from graphile_worker_py.web import create_app

PAGE = Path(__file__).parent.parent / "docs" / "http-api.md"
BEGIN = "<!-- begin: written by tools/http_api_page.py -->\n"
END = "<!-- end -->\n"


def document() -> dict[str, Any]:
    """The OpenAPI document; no database is needed for it."""
    return create_app("postgresql://localhost/none").openapi()


def tables() -> str:
    """The calls, a table for each subject."""
    told = document()
    groups: dict[str, list[str]] = {}
    for path, calls in told["paths"].items():
        for method, call in calls.items():
            groups.setdefault(call["tags"][0], []).append(_row(method, path, call))
    parts = []
    for name in ("jobs", "actions", "history", "facts", "pauses", "limits", "probes"):
        head = "| call | meaning | parameters | answers |\n| --- | --- | --- | --- |"
        parts.append("\n".join([f"## {name.capitalize()}", "", head, *groups[name], ""]))
    schema = told["components"]["schemas"]["NewJob"]
    rows = [_field(name, field, schema) for name, field in schema["properties"].items()]
    head = "| field | type | meaning |\n| --- | --- | --- |"
    return "\n".join([*parts, "## A new job", "", head, *rows, ""])


def _row(method: str, path: str, call: dict[str, Any]) -> str:
    names = [f"`{each['name']}`" for each in call.get("parameters", []) if each["in"] != "path"]
    meaning = " ".join((call.get("description") or call["summary"]).split())
    answers = ", ".join(sorted(call["responses"]))
    return f"| `{method.upper()} {path}` | {meaning} | {', '.join(names)} | {answers} |"


def _field(name: str, field: dict[str, Any], schema: dict[str, Any]) -> str:
    kinds = [_kind(each) for each in field.get("anyOf", [field])]
    needed = " (required)" if name in schema.get("required", []) else ""
    shown = " or ".join(kind for kind in kinds if kind != "null")
    return f"| `{name}`{needed} | {shown} | {field.get('description', '')} |"


def _kind(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return f"`{field['$ref'].rpartition('/')[2]}`"
    limits = [
        f"{label} {field[key]:,}"
        for key, label in (
            ("minLength", "at least"),
            ("maxLength", "at most"),
            ("minimum", "from"),
            ("maximum", "to"),
        )
        if key in field
    ]
    kind = field.get("format", field.get("type", "any JSON value"))
    return f"{kind}, {' '.join(limits)}" if limits else str(kind)


def rewritten(page: str) -> str:
    """The page with its tables replaced by the current ones."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
