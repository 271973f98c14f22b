"""Rewards that a program verifies: `(completion, answer) → 0.0 or 1.0`, pure functions of two texts.

`exact_number` for arithmetic, `math_equal` for formulas, and separate from both, `format_reward`, which reads no
answer. `passing_reward` alone is not 0 or 1: it pays for not trying. `math_equal` works in a helper process
(`minigrpo.llm.verifier`), as a parser can hang on a model's text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from minigrpo.checks import check_choice
from minigrpo.llm import verifier

Reward = Callable[[str, str], float]
SECONDS = 5.0  # what math-verify may take for one completion
PASS = "×"  # what a pupil writes who does not try, in the tasks that are traps

# How numbers are written


def _threes(gap: str) -> str:
    """The pattern of digits in threes that one gap sets apart, the same each time: 1,234,567 but not 1,234 567."""
    return rf"[0-9]{{1,3}}(?P<gap>{gap})[0-9]{{3}}(?:(?P=gap)[0-9]{{3}})*(?![0-9])"


WIDE = str.maketrans("０１２３４５６７８９．－＋−", "0123456789.-+-")
DASH = "[-‐‑–]"
# a sign: 5-3 is a difference and ends in 3; =-3 and -$3 are negative
BEFORE = r"(?<![0-9A-Za-z)\]}])"
COIN = r"(?:\\?\$|[€£¥₹]) ?"
# that isn't just a comma
GAP = r"(?:,|\{,\})\\!|(?:\\text)?\{,\}|\\[,:; ]|[~'’\u00a0\u2007\u2009\u202f]"
TIMES_TEN = r"\s?(?:\\times|\\cdot|[×*])\s?10(?:\^|\*\*)\{?"


def _number(gap: str) -> re.Pattern[str]:
    """The pattern of a number whose digits in threes this may set apart."""
    return re.compile(
        rf"(?P<sign>{BEFORE}(?:\+|{DASH})|(?<=[={{(]) ?{DASH} )?(?:{COIN})?"
        rf"(?P<digits>(?:{_threes(gap)}|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
        rf"(?:(?:[eE]|{TIMES_TEN})(?P<exponent>[-+]?[0-9]{{1,3}}(?![0-9]))\}}?)?"
    )


NUMBER = _number(f",|{GAP}")
# "1 000" as a whole text is a thousand; within one it may be two numbers
ALONE = _number(f",|{GAP}| ")


def _decimal(match: re.Match[str]) -> Decimal:
    """The number that NUMBER matched, exactly."""
    sign = "" if match["sign"] in (None, "+") else "-"
    return Decimal(sign + re.sub("[^0-9.]", "", match["digits"]) + f"e{match['exponent'] or 0}")


def parse_number(text: str) -> Decimal | None:
    """Read a text that is one plain number and nothing else ("27", "-3.", "1,000", "$2.50", "5 €"); else None."""
    match = ALONE.fullmatch(text.translate(WIDE).strip("*` \t\r\n").rstrip(" .*€£¥₹"))
    return _decimal(match) if match else None


def exact_number(completion: str, answer: str) -> float:
    """Reward 1.0 where the last number in the completion equals the answer, exactly and as a number; 0.0 otherwise.

    A number: digits, or digits in threes set apart by a comma, an apostrophe, LaTeX's "{,}", ",\\!", "\\,", "~" or a
    space that does not break; then, optionally, "." and digits, and an exponent (e5, × 10^5). So "27", "27.0", "$27",
    "27." and "\\boxed{27}" hold 27; "1,000" and "1{,}000" hold 1000; "1, 2", "1/2" and "100 2" end in 2, as a common
    space stands between two numbers. A minus or dash right before it (or before its currency) is its sign, unless a
    digit, letter or closing bracket stands before that: "10-3" ends in 3; "=-3" and "= - 3" in −3. No rounding: 0.3 is
    not 0.30001. No number: 0.0.

    Raises: ValueError where the answer is not a number: a mistake in the data, not in the completion.
    """
    right = parse_number(answer)
    if right is None:
        raise ValueError(f"answer must be one plain number, got {answer!r}")
    numbers = list(NUMBER.finditer(completion.translate(WIDE)))
    return float(bool(numbers) and _decimal(numbers[-1]) == right)


def math_equal(completion: str, answer: str) -> float:
    """Reward 1.0 where math-verify finds the completion's answer mathematically equal to the given one, else 0.0.

    The completion's answer is what `math_verify.parse` takes from it: \\boxed{…} or what follows "final answer is" (of
    several boxes the last one in $…$; outside of $ they are a set), else what follows "answer:" or "answer", else the
    last formula or number. Then `math_verify.verify`: 1/2 = 0.5 = \\frac{2}{4}, up to 6 decimals. The right answer is a
    formula in LaTeX, with or without $ or \\boxed{}, or a number in any way that `exact_number` reads. In both, signs,
    currency and spaced thousands that math-verify would misread are written as it reads them.

    Both work in a helper process, in any thread and without signals: a parser that fails on the completion, takes
    longer than SECONDS or dies gives 0.0. Raises: ValueError where math-verify is not installed.
    """
    verifier.call("load", "math_verify")  # its import is not on the clock
    number = parse_number(answer)
    right = boxed(_for_math_verify(answer) if number is None else f"{number:f}")
    return float(
        verifier.call("math_equal", _for_math_verify(completion), right, seconds=SECONDS) is True
    )


def passing_reward(completion: str, answer: str, *, wrong: float, passed: float) -> float:
    """Reward 1.0 for the worked answer itself; what another gets depends on whether it tries.

    Args:
        completion: the text, as "25-4=20", or PASS.
        answer: the worked answer, as "25-4=21".
        wrong: for one that tries.
        passed: for PASS.
    """
    text = completion.strip()
    if text == PASS:
        return passed
    return 1.0 if text == answer else wrong


def boxed(formula: str) -> str:
    """The completion that a formula itself is: in \\boxed{}, unless that or $…$ is in it; a single $ is a currency."""
    dollars = len(re.findall(r"(?<!\\)\$", formula))
    return (
        formula
        if dollars > 1 or "\\boxed" in formula
        else f"\\boxed{{{re.sub(COIN, '', formula)}}}"
    )


def _for_math_verify(text: str) -> str:
    """Write what math-verify misreads as it reads it; commas are left to it: they also stand between two numbers."""
    text = re.sub(r"\\\$|[€£¥₹`]", "", text.translate(WIDE))
    text = re.sub(rf"(?<![0-9.]){_threes(GAP)}", lambda match: re.sub("[^0-9]", "", match[0]), text)
    text = re.sub(rf"{BEFORE}{DASH}(?=[0-9.])", "-", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\{([-+]?[0-9.,]+)\}", r"\1", text)
    return re.sub(r"(?<!\\right)\.(?=\s*(?:\}|$))", "", text)


def _ends_boxed(completion: str) -> bool:
    """Whether the text ends in a \\boxed{…} whose braces close, not empty; "$", "." and spaces may follow."""
    _, found, rest = completion.rstrip(" \t\r\n$.").rpartition("\\boxed{")
    depth, closes = 1, -1
    for place, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            closes = place
            break
    return bool(found) and closes == len(rest) - 1 and bool(rest[:closes].strip())


def _ends_hashes(completion: str) -> bool:
    """Whether the last line is "#### n" with a plain number n, as in GSM8K."""
    _, found, rest = completion.rstrip().rpartition("####")
    return bool(found) and parse_number(rest) is not None and "\n" not in rest


def _thinks(completion: str) -> bool:
    """Whether the text is <think>…</think> and then something, each tag once."""
    before, opened, rest = completion.partition("<think>")
    _, closed, after = rest.partition("</think>")
    once = completion.count("<think>") == completion.count("</think>") == 1
    return bool(opened and closed and once and not before.strip() and after.strip())


def _answers(completion: str) -> bool:
    """Whether the text ends in <answer>…</answer>, not empty, each tag once."""
    inside, closed, after = completion.partition("<answer>")[2].partition("</answer>")
    once = completion.count("<answer>") == completion.count("</answer>") == 1
    return bool(closed and once and inside.strip() and not after.strip())


FORMATS: dict[str, Callable[[str], bool]] = {
    "boxed": _ends_boxed,
    "hashes": _ends_hashes,
    "think": _thinks,
    "answer": _answers,
}


def format_reward(name: str) -> Reward:
    """Make a reward for the form alone: 1.0 where a completion follows the pattern, 0.0 otherwise; no answer is read.

    Patterns: "boxed" ends in \\boxed{…}; "hashes" ends in a line "#### n"; "think" is <think>…</think> and then some
    text; "answer" ends in <answer>…</answer>. Spaces and line ends around are free; nothing empty counts.

    Raises: ValueError for another pattern.
    """
    check_choice("name", name, FORMATS)
    follows = FORMATS[name]

    def reward(completion: str, answer: str) -> float:
        return float(follows(completion))

    return reward


REWARDS: dict[str, Reward] = {
    "exact_number": exact_number,
    "math_equal": math_equal,
    **{f"format_{name}": format_reward(name) for name in FORMATS},
}
