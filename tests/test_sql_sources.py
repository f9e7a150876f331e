"""No SQL is built from input: every statement that is sent is a constant of the sources.

Values travel beside it; the only thing put into it is the quoted name of the schema, or of a
channel.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "graphile_worker_py"
SOURCES = sorted(PACKAGE.rglob("*.py"))

SINKS = {"execute", "executemany", "copy", "stream", "Query", "SQL", "run_script", "statement"}
"""What takes a statement as its first argument."""
QUOTING = {"Identifier", "Literal", "Placeholder"}
"""What psycopg's `SQL.format` may be given."""
MADE_ELSEWHERE = {
    "listen_on": "quotes the name of a channel",
    "read_migration": "reads a file of the package",
}
NO_STATEMENT = {"shutil.copy", "os.stream"}


class Reader:
    """Finds statements that are not made of constants alone.

    A constant is a string, or a name in capitals; that one is looked at where it is assigned.
    """

    def __init__(self, source: str) -> None:
        self._tree = ast.parse(source)
        self._parents = {
            child: parent
            for parent in ast.walk(self._tree)
            for child in ast.iter_child_nodes(parent)
        }

    def faults(self) -> list[str]:
        """What is wrong, with its line."""
        return [f"line {node.lineno}: {ast.unparse(node)}" for node in self._wrong()]

    def _wrong(self) -> Iterator[ast.expr]:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call) and _name(node.func) in SINKS and node.args:
                if ast.unparse(node.func) in NO_STATEMENT:
                    continue
                if not self._is_constant(node.args[0], node):
                    yield node.args[0]
            elif isinstance(node, ast.Call) and _name(node.func) == "format":
                assert isinstance(node.func, ast.Attribute)
                if isinstance(node.func.value, ast.Call) and _name(node.func.value.func) == "SQL":
                    given = [*node.args, *(keyword.value for keyword in node.keywords)]
                    for each in given:
                        if not isinstance(each, ast.Call) or _name(each.func) not in QUOTING:
                            yield each

    def _is_constant(self, node: ast.expr, at: ast.AST) -> bool:
        match node:
            case ast.Constant():
                return True
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._is_constant(left, at) and self._is_constant(right, at)
            case ast.IfExp(body=body, orelse=orelse):
                return self._is_constant(body, at) and self._is_constant(orelse, at)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return all(self._is_constant(part, at) for part in parts)
            case ast.Subscript(value=ast.Attribute(attr="statements" | "_statements"), slice=text):
                return self._is_constant(text, at)
            case ast.Attribute(attr="text"):
                return True  # of a Query, which was looked at where it was made
            case ast.Attribute(attr=name):
                return name.isupper()  # of another module, looked at there
            case ast.Call(func=func) if _name(func) in MADE_ELSEWHERE:
                return True
            case ast.Name(id=name):
                return self._is_constant_name(name, at)
        return False

    def _is_constant_name(self, name: str, at: ast.AST) -> bool:
        """Whether everything that a name stands for is constant, in its function or module."""
        scope: ast.AST = self._tree
        found: list[ast.expr] = []
        if not name.lstrip("_").isupper():
            scope = self._function_of(at)
            if isinstance(scope, ast.Lambda | ast.Module):
                return False
            if _is_literal_parameter(scope, name):
                return True
        for node in ast.walk(scope):
            match node:
                case ast.Assign(targets=targets, value=value):
                    if any(isinstance(each, ast.Name) and each.id == name for each in targets):
                        found.append(value)
                case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value):
                    if target == name:
                        found.append(value)
                case ast.AugAssign(target=ast.Name(id=target), value=value) if target == name:
                    found.append(value)
                case ast.For(target=target, iter=values):
                    if any(
                        isinstance(each, ast.Name) and each.id == name for each in ast.walk(target)
                    ):
                        found.append(_within_enumerate(values))
        if not found:
            return scope is self._tree  # imported: looked at where it is assigned
        return all(self._is_constant(value, at) for value in found)

    def _function_of(self, node: ast.AST) -> ast.AST:
        while not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            node = self._parents[node]
        return node


def _name(function: ast.expr) -> str:
    """The last part of a called name."""
    match function:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case ast.Subscript(value=value):
            return _name(value)
    return ""


def _within_enumerate(values: ast.expr) -> ast.expr:
    if isinstance(values, ast.Call) and _name(values.func) == "enumerate":
        return values.args[0]
    return values


def _is_literal_parameter(function: ast.AST, name: str) -> bool:
    """Whether a name is a parameter for constants of callers, who are looked at: `statement`."""
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    return function.name in SINKS and any(
        argument.arg == name
        and isinstance(argument.annotation, ast.Name)
        and argument.annotation.id == "LiteralString"
        for argument in function.args.args
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_statement_is_a_constant(path: Path) -> None:
    assert Reader(path.read_text(encoding="utf-8")).faults() == []


def test_there_are_statements_to_look_at() -> None:
    found = [
        node
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _name(node.func) in SINKS
    ]
    assert len(found) > 60


@pytest.mark.parametrize(
    "source",
    [
        'conn.execute(f"select {x}")',
        'conn.execute("select " + x)',
        'conn.execute("select %s" % x)',
        'conn.execute("select {}".format(x))',
        'conn.execute(" ".join(parts))',
        "conn.execute(x)",
        'def f(x):\n    text = f"select {x}"\n    conn.execute(text)',
        'def f(x):\n    text = "select "\n    text += x\n    conn.execute(text)',
        "def f(text):\n    conn.execute(text)",
        'def f(x):\n    for text in ["a", x]:\n        conn.execute(text)',
        '_READ = f"select {x}"\nQuery(_READ, (), list)',
        'Query(f"select {x}", (), list)',
        'Query[int](_A if x else y, (), list)',
        'database.statements["select " + x]\nconn.execute(database.statements["select " + x])',
        'sql.SQL(x)',
        'sql.SQL("select {}").format(x)',
        'sql.SQL("select {}").format(sql.SQL(x))',
        'def other(text: LiteralString):\n    return Query(text, (), list)',
    ],
)  # fmt: skip
def test_what_is_built_from_input_is_found(source: str) -> None:
    assert Reader(source).faults() != []


@pytest.mark.parametrize(
    "source",
    [
        'conn.execute("select 1")',
        '_A = "a"\n_B = "select " + _A\nQuery(_B, (x,), list)',
        'def f(x):\n    text = _A if x else _B\n    return Query(text, (x,), list)',
        'sql.SQL("listen {}").format(sql.Identifier(x))',
        'conn.execute(database.statements[migrations.CREATE])',
    ],
)  # fmt: skip
def test_what_is_constant_is_not_complained_of(source: str) -> None:
    assert Reader(source).faults() == []
