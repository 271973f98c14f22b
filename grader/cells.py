"""A cell of code as Jupyter's kernel reads it: plain Python, the names that it makes and those that it reads.

Nothing is run here. IPython itself turns magics, shell lines and questions into calls of `get_ipython()`; that and
`display`, which Jupyter brings, are stand-ins without an effect where a cell is run. Top-level `await` stays what it is
for Python: a SyntaxError.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterable
from dataclasses import dataclass

LARGEST_CELL = 100_000  # characters of code
# what reading a source may raise
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
ANYTHING = "*"  # what `from math import *` makes
# cell magics whose body is run as it stands; others are no code
OF_PYTHON = ("time", "timeit", "prun", "capture")

DECORATED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Cell:
    """A cell of code, or one statement of it: what it makes at its top level, and every name it reads."""

    # of the cell in the notebook, and of the statement in the cell; 0 is a whole cell
    place: tuple[int, int]
    label: str  # the exercise, or "cell 7"
    source: str
    defines: frozenset[str]
    reads: frozenset[str]


STAND_INS = '''
def get_ipython():
    class Shell:
        def getoutput(self, *command, **options):
            return []

        def __getattr__(self, name):
            return lambda *values, **options: None

    return Shell()


def display(*values, **options):
    """Show nothing."""
'''
JUPYTER = Cell((0, 0), "Jupyter", STAND_INS, frozenset({"get_ipython", "display"}), frozenset())


def code_cell(place: int, label: str, source: str) -> Cell:
    """Read a cell of code; what is no Python defines nothing, and fails where it is run.

    Args:
        place: of the cell in the notebook, from 1.
        label: how messages name it.
        source: its text.
    """
    if len(source) > LARGEST_CELL:
        source = f'raise ValueError("this cell is longer than {LARGEST_CELL} characters")'
    source = plain_python(source)
    return Cell((place, 0), label, source, *_names(source))


def is_python(source: str) -> bool:
    """Whether a source can be parsed."""
    try:
        ast.parse(source)
    except NOT_PYTHON:
        return False
    return True


def is_text(source: str) -> bool:
    """Whether words were written into a cell of code: no Python, or comments and expressions that call nothing."""
    if not is_python(source):
        return True
    body = ast.parse(source).body
    calls = any(isinstance(part, ast.Call) for statement in body for part in ast.walk(statement))
    return (
        bool(source.strip())
        and all(isinstance(statement, ast.Expr) for statement in body)
        and not calls
    )


def plain_python(source: str) -> str:
    """Write a cell as the Python that Jupyter runs; one of another language becomes empty."""
    while not is_python(source):  # in Python a line may begin with % too
        from IPython.core.inputtransformer2 import TransformerManager

        try:
            transformed = TransformerManager().transform_cell(source)
            body = ast.parse(transformed).body
        except (*NOT_PYTHON, RuntimeError):  # RuntimeError: more magics than IPython takes
            return source
        magic, rest = _magic(body[0], "run_cell_magic") if len(body) == 1 else ("", "")
        if not magic:
            return _with_timed_lines(transformed, body)
        source = rest if magic in OF_PYTHON else ""
    return source


def _with_timed_lines(source: str, body: list[ast.stmt]) -> str:
    """A source in which `%time x = f()` stands as `x = f()`, as it makes x."""
    statements: list[ast.stmt] = []
    for node in body:
        magic, timed = _magic(node, "run_line_magic")
        statements += ast.parse(timed).body if magic == "time" and is_python(timed) else [node]
    return source if statements == body else ast.unparse(ast.Module(statements, []))


def _magic(node: ast.stmt, method: str) -> tuple[str, str]:
    """The magic and its text, where a statement is `get_ipython().method("magic", …, "text")`; else two empty texts."""
    match node:
        case ast.Expr(
            ast.Call(
                ast.Attribute(attr=attr), [ast.Constant(str(magic)), *_, ast.Constant(str(text))]
            )
        ):
            return (magic, text) if attr == method else ("", "")
    return "", ""


def _names(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names that a source binds at its top level, and those that it reads from there, in whatever scope."""
    try:
        top = symtable.symtable(source, "cell", "exec")
    except NOT_PYTHON:
        return frozenset(), frozenset()
    defines = {
        name.get_name() for name in top.get_symbols() if name.is_assigned() or name.is_imported()
    }
    reads, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        reads |= {
            n.get_name()
            for n in table.get_symbols()
            if n.is_referenced() and (table is top or n.is_global())
        }
    return frozenset(defines), frozenset(reads)


def statements(cells: Iterable[Cell], modules: frozenset[str]) -> list[Cell]:
    """The statements of cells that are no exercise, one by one, so that a plot or a check beside a helper is not run.

    A statement makes the names that it binds and those whose object it changes (`x[0] = 1`, `x.append(1)`), but for
    `modules`: each `torch.…` in the notebook would else belong to all that reads `torch`.
    """
    found = []
    for cell in cells:
        if not is_python(cell.source):
            continue
        lines = cell.source.encode().splitlines(keepends=True)
        for number, node in enumerate(ast.parse(cell.source).body, start=1):
            source = _segment(lines, node)
            defines, reads = _names(source)
            defines |= _changed(node) - modules
            if isinstance(node, ast.ImportFrom) and node.names[0].name == ANYTHING:
                defines = frozenset({ANYTHING})
            found.append(Cell((cell.place[0], number), cell.label, source, defines, reads))
    return found


def imported(cells: Iterable[Cell]) -> frozenset[str]:
    """The names that import statements bind, anywhere in the cells."""
    trees = [ast.parse(cell.source) for cell in cells if is_python(cell.source)]
    imports = [
        n for tree in trees for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))
    ]
    return frozenset(
        alias.asname or alias.name.partition(".")[0] for node in imports for alias in node.names
    )


def _segment(lines: list[bytes], node: ast.stmt) -> str:
    """The text of a statement, with its decorators; offsets of the parser count bytes."""
    assert node.end_lineno is not None  # the parser gives it always
    assert node.end_col_offset is not None
    first, start = node.lineno, node.col_offset
    decorators = node.decorator_list if isinstance(node, DECORATED) else []
    if decorators:
        first, start = decorators[0].lineno, 0
    text = b"".join(lines[first - 1 : node.end_lineno])
    # bytes of the last line after the statement
    tail = len(lines[node.end_lineno - 1]) - node.end_col_offset
    return text[start : len(text) - tail].decode()


def _changed(node: ast.stmt) -> set[str]:
    """The names whose object a statement changes where it is run."""
    changed: set[str] = set()
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return changed
    stored = (ast.Store, ast.Del)
    for part in ast.walk(node):
        if isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            target = part.value.func
        elif isinstance(part, (ast.Attribute, ast.Subscript)) and isinstance(part.ctx, stored):
            target = part
        else:
            continue
        inner = target
        while isinstance(inner, (ast.Attribute, ast.Subscript)):
            inner = inner.value
        if isinstance(inner, ast.Name) and inner is not target:
            changed.add(inner.id)
    return changed
