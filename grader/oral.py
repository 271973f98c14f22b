"""Two questions a student for a talk about their work, drawn from what they handed in themselves.

A student's code is parsed, never run: simple templates look for a line that assigns, a reduction over a dimension, a
comparison, a use of the mask. Exercises with full points come first, and lines that stand in the lab's own notebook
are left out. Who has no code to ask about is asked about the written answers. The same submission gets the same
questions; which answer is right the instructor judges, there is no key.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grader.cells import NOT_PYTHON
from grader.grade import find_submissions, printable
from grader.labs import asked_files
from grader.results import Grade
from grader.submission import Submission, SubmissionError, read_apart
from minigrpo.report import Pre

QUESTIONS = 2  # a student
LARGEST_CODE = 20_000  # characters of a cell that is parsed here
LONGEST_LINE = 160  # characters that are shown of a line, or of a sentence
SHORTEST_SENTENCE = 20
GROUP = "on a group of 3 completions of length 4"
OF_A_GROUP = re.compile("completion|mask|rewards|logps|token")
REDUCTIONS = frozenset(
    "sum mean prod cumprod cumsum max min amax amin any all std var argmax argmin median norm "
    "softmax log_softmax logsumexp logcumsumexp".split()
)
SWAPS: Mapping[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
}
SIGNS: Mapping[type[ast.cmpop], str] = {ast.Eq: "==", ast.NotEq: "!="}
ABOUT_AN_ANSWER = (
    "Say this in other words, and give an example that is not in the lab.",
    "What would have to be different for the opposite to be true?",
    "Which line of code, yours or the lab's, shows this, and how?",
    "Somebody doubts this sentence. Which small experiment would convince them?",
)


@dataclass(frozen=True)
class Question:
    """One question, with what it is about."""

    exercise: str  # as in "lab02.2"
    kind: str  # the template's name
    line: str  # of the student's, on one line
    text: str


@dataclass(frozen=True)
class Asked:
    """A student's questions, or why there are none."""

    student: str
    questions: tuple[Question, ...] = ()
    why: str = ""


# ---------------------------------------------------------------------------------------------------------------------
# Templates: from a statement to a question, or to None
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A statement of a student's function: of a compound one, its first line."""

    node: ast.stmt
    parts: tuple[ast.AST, ...]  # what stands on the line
    text: str
    example: str  # to answer with
    again: bool  # whether it gives a name a new value

    def find(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        for part in self.parts:
            yield from (node for node in ast.walk(part) if isinstance(node, kinds))


def _reduction(line: _Line) -> str | None:
    for call in line.find(ast.Call):
        assert isinstance(call, ast.Call)
        if isinstance(call.func, ast.Attribute) and call.func.attr in REDUCTIONS:
            dimension = _dimension(call)
            if dimension is not None:
                name = call.func.attr
                return (
                    f"`{name}` goes over dimension {dimension} here. What does that dimension stand for, "
                    f"and which shape comes out {line.example}?"
                )
    return None


def _dimension(call: ast.Call) -> int | None:
    """The one dimension that a reduction names."""
    of_module = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in (
        *("torch", "th", "np", "numpy", "F", "torch.nn.functional"),
    )
    named = [word.value for word in call.keywords if word.arg in ("dim", "axis")]
    values = [*named, *call.args[1 if of_module else 0 :]]
    return _whole_number(values[0]) if values else None


def _whole_number(value: ast.expr) -> int | None:
    """A number as it is written, −1 too."""
    match value:
        case ast.Constant(value=number) if type(number) is int:
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=number)) if type(number) is int:
            return -number
    return None


def _comparison(line: _Line) -> str | None:
    found = [node for node in line.find(ast.Compare) if isinstance(node, ast.Compare)]
    if len(found) != 1 or len(found[0].ops) != 1:
        return None
    kind = type(found[0].ops[0])
    if kind in SWAPS:
        sign, other = SWAPS[kind]
        return (
            f"What would change if `{sign}` were `{other}` here? Name an input on which the answers "
            "differ, or say why there is none."
        )
    if kind in SIGNS:
        return (
            f"Name the smallest input on which `{SIGNS[kind]}` is true here once and false once. "
            "What comes out of this line then?"
        )
    return None


def _mask(line: _Line) -> str | None:
    names = [
        node.id
        for node in line.find(ast.Name)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and "mask" in node.id
    ]
    if not names:
        return None
    return f"What does `{names[0]}` take away here, and what would come out if it were True everywhere?"


def _assignment(line: _Line) -> str | None:
    node = line.node
    target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        target = node.target
    value = getattr(node, "value", None)
    if not isinstance(target, ast.Name) or _is_plain(value):
        return None
    return (
        f"What does `{target.id}` hold after this line, and which shape or length has it "
        f"{line.example}?"
    )


def _is_plain(value: ast.AST | None) -> bool:
    """Whether a value says nothing to ask about: a constant, another name, an empty list."""
    return isinstance(value, ast.Constant | ast.Name) or not any(
        isinstance(node, ast.Constant | ast.Name) for node in ast.walk(value or ast.Pass())
    )


def _left_out(line: _Line) -> str | None:
    node = line.node
    alone = isinstance(node, ast.If) and not node.orelse
    if isinstance(node, ast.AugAssign) or line.again or alone:
        rest = ", with what stands under it," if alone else ""
        return f"What would change if this line{rest} were left out? Name an input that shows it."
    return None


def _loop(line: _Line) -> str | None:
    if not isinstance(line.node, ast.For | ast.While):
        return None
    return (
        f"How often does this loop run {line.example}, and what has changed after its first turn?"
    )


def _return(line: _Line) -> str | None:
    value = line.node.value if isinstance(line.node, ast.Return) else None
    if value is None or isinstance(value, ast.Constant | ast.Name):
        return None
    return f"Say step by step what this line computes {line.example}."


TEMPLATES: Mapping[str, Callable[[_Line], str | None]] = {
    "reduction": _reduction,
    "comparison": _comparison,
    "mask": _mask,
    "assignment": _assignment,
    "left out": _left_out,
    "loop": _loop,
    "return": _return,
}


# ---------------------------------------------------------------------------------------------------------------------
# A student's lines
# ---------------------------------------------------------------------------------------------------------------------


def about_code(exercise: str, source: str, given: Iterable[str] = ()) -> list[Question]:
    """Every question that a cell's functions allow; [] for what is no Python.

    Args:
        exercise: as in "lab02.2".
        source: of the cell, only parsed.
        given: lines of the lab's own, on which nobody is asked.
    """
    if len(source) > LARGEST_CODE:
        return []
    try:
        lines = list(_lines(source, set(given)))
        return [
            Question(exercise, kind, line.text, text)
            for line in lines
            for kind, template in TEMPLATES.items()
            if (text := template(line))
        ]
    except NOT_PYTHON:
        return []


def _lines(source: str, given: set[str]) -> Iterator[_Line]:
    """The statements of a cell's functions, without docstrings, imports and what was given."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    lines = source.encode(errors="replace").split(b"\n")  # places in a line are counted in bytes
    seen: set[ast.stmt] = set()  # of a function inside another
    for function in functions:
        example = _example(function)
        named: set[str] = set()
        for node in _statements(function):
            text, parts = _shown(lines, node)
            made = _makes(node)
            again = bool(made) and made in named
            named |= {made} if made else set()
            if node not in seen and text and text not in given:
                seen.add(node)
                yield _Line(node, parts, printable(_short(text)), example, again)


def _statements(function: ast.FunctionDef) -> list[ast.stmt]:
    """Its statements in the order of the text, those inside others too."""
    found = [node for node in ast.walk(function) if isinstance(node, ast.stmt)][1:]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def _makes(node: ast.stmt) -> str:
    """The one name to which a statement gives a value."""
    target = node.targets[0] if isinstance(node, ast.Assign) else None
    return target.id if isinstance(target, ast.Name) else ""


def _example(function: ast.FunctionDef) -> str:
    names = [argument.arg for argument in function.args.args]
    return GROUP if any(map(OF_A_GROUP.search, names)) else "on a small example of your own"


def _shown(lines: Sequence[bytes], node: ast.stmt) -> tuple[str, tuple[ast.AST, ...]]:
    """A statement on one line, and what of it stands there; "" for one that nobody is asked about."""
    match node:
        case ast.If(test=test):
            return f"if {_text(lines, test)}:", (test,)
        case ast.While(test=test):
            return f"while {_text(lines, test)}:", (test,)
        case ast.For(target=target, iter=values):
            return f"for {_text(lines, target)} in {_text(lines, values)}:", (values,)
        case ast.Expr(value=ast.Constant()):
            return "", ()
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.Return() | ast.Expr():
            return _text(lines, node), (node,)
    return "", ()


def _text(lines: Sequence[bytes], node: ast.stmt | ast.expr) -> str:
    """A node's own text on one line: `ast.get_source_segment`, without splitting the source each time."""
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    found = list(lines[first : last + 1])
    found[-1] = found[-1][: node.end_col_offset]
    found[0] = found[0][node.col_offset :]
    return " ".join(b" ".join(found).decode(errors="replace").split())


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 1]}…"


def about_answer(exercise: str, answer: str) -> list[Question]:
    """A question about each sentence of a written answer that is long enough, else about all of it."""
    text = " ".join(printable(answer.replace("\n", " ")).split())
    sentences = [
        part for part in re.split(r"(?<=[.!?])\s+", text) if len(part) >= SHORTEST_SENTENCE
    ]
    return [
        Question(exercise, f"answer {number}", _short(sentence), question)
        for sentence in sentences or [text]
        for number, question in enumerate(ABOUT_AN_ANSWER)
        if sentence
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Which two
# ---------------------------------------------------------------------------------------------------------------------


def draw(submission: Submission, grade: Grade, given: Iterable[str] = ()) -> list[Question]:
    """Draw a student's questions: the same submission gives the same.

    Args:
        submission: what was handed in.
        grade: the student's, for exercises with full points come first.
        given: lines of the lab's own.
    """
    own = f"{submission.student}\0{submission.sha256}"
    full = {row.id for row in grade.exercises if row.points and row.earned == row.points}
    lines = set(given)
    code = {
        exercise: _about_exercise(submission, exercise, lines) for exercise in submission.exercises
    }
    written = {
        exercise: about_answer(exercise, text) for exercise, text in submission.answers.items()
    }
    ranked = sorted(_shuffled(code, own), key=lambda exercise: exercise not in full)
    drawn: list[Question] = []
    # one of each exercise, then others of the same ones, then of what was written
    for pool in [*(code[name] for name in ranked), *(code[name] for name in ranked)]:
        _draw_one(pool, drawn, own)
    for name in _shuffled(written, own) * QUESTIONS:
        _draw_one(written[name], drawn, own)
    return drawn


def _about_exercise(submission: Submission, exercise: str, given: set[str]) -> list[Question]:
    """The questions on an exercise's cell, and where there are none, on the student's functions that it uses."""
    found = about_code(exercise, submission.exercises[exercise].source, given)
    if found:
        return found
    helpers = [
        source for label, source in submission.cells_for(exercise) if label.startswith("cell ")
    ]
    return [question for source in helpers for question in about_code(exercise, source, given)]


def _draw_one(pool: Sequence[Question], drawn: list[Question], own: str) -> None:
    """Add a question on another line than the others, of another kind where there is one."""
    if len(drawn) == QUESTIONS:
        return
    lines, kinds = {question.line for question in drawn}, {question.kind for question in drawn}
    fresh = [question for question in pool if question.line not in lines]
    telling = [question for question in fresh if question.kind != "return"]
    other = [question for question in telling if question.kind not in kinds]
    left = other or telling or fresh
    if left:
        # a kind first: lines that assign are many
        kind = _shuffled({question.kind for question in left}, own)[0]
        texts = {f"{q.line}\0{q.text}": q for q in left if q.kind == kind}
        drawn.append(texts[_shuffled(texts, own)[0]])


def _shuffled(names: Iterable[str], own: str) -> list[str]:
    """Names in an order that follows from the submission, the same on every machine."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{own}\0{name}".encode()).hexdigest())


def ask_class(
    grades: Sequence[Grade], folder: Path, entry: Mapping, given: Iterable[str]
) -> Iterator[Asked]:
    """The questions of each student, or why there are none.

    Args:
        grades: of those who are asked.
        folder: of the submissions, as they were graded.
        entry: the lab in the manifest.
        given: lines of the lab's own.

    Raises: ValueError for a folder that does not exist or holds nothing.
    """
    found, lines = find_submissions(folder), set(given)
    for grade in grades:
        paths = found.get(grade.student, [])
        if grade.problem or len(paths) != 1:
            yield Asked(grade.student, why=grade.problem or f"is not in {folder} any more")
            continue
        try:
            submission = read_apart(paths[0], grade.student, entry, asked_files(grade.lab))
        except SubmissionError as error:
            yield Asked(grade.student, why=str(error))
            continue
        if submission.sha256 != grade.sha256:
            yield Asked(grade.student, why="has handed in again since: grade again")
            continue
        questions = tuple(draw(submission, grade, lines))
        yield Asked(
            grade.student, questions, "" if questions else "has handed in nothing to ask about"
        )


# ---------------------------------------------------------------------------------------------------------------------
# In words
# ---------------------------------------------------------------------------------------------------------------------


def as_text(asked: Sequence[Asked]) -> str:
    """All questions as lines of text."""
    lines = []
    for student in asked:
        lines.append(f"{student.student}{': ' * bool(student.why)}{student.why}")
        for number, question in enumerate(student.questions, start=1):
            lines += [f"  {number}. {_about(question)}", f"       {question.line}"]
            lines += [f"     {question.text}", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def as_sections(asked: Sequence[Asked]) -> list[tuple[str, list[str | Pre]]]:
    """All questions as a page's sections, one a student."""
    sections = []
    for student in asked:
        blocks: list[str | Pre] = [f"{student.why}."] if student.why else []
        for number, question in enumerate(student.questions, start=1):
            blocks += [f"{number}. {_about(question)}", Pre(question.line), question.text]
        sections.append((student.student, blocks))
    return sections


def _about(question: Question) -> str:
    if question.kind.startswith("answer"):
        return f"In your answer to {question.exercise} you wrote:"
    return f"In your {question.exercise} there is this line:"
