"""Rewards of texts: the rule of each, its edges, and texts that are made to break a parser."""

import os
import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest

pytest.importorskip("math_verify")

from minigrpo.llm import rewards, verifier
from minigrpo.llm.rewards import REWARDS, exact_number, format_reward, math_equal, parse_number

ROOT = Path(__file__).resolve().parent.parent

# text, the number it ends in
ENDS_IN = [
    ("27", "27"),
    ("27.0", "27"),
    ("The sum is 27.", "27"),
    ("$27", "27"),
    ("\\$27.50 in all", "27.5"),
    ("so \\boxed{27}", "27"),
    ("**27**", "27"),
    ("1,000", "1000"),
    ("1,234,567.5 km", "1234567.5"),
    ("1, 2", "2"),
    ("12,3456", "3456"),
    ("1,23", "23"),
    ("0042", "42"),
    (".5", "0.5"),
    ("-3", "-3"),
    ("−3", "-3"),
    ("+3", "3"),
    ("= -$3", "-3"),
    ("$-3$", "-3"),
    ("4-7=-3", "-3"),
    ("\\boxed{-3}", "-3"),
    ("10-3", "3"),
    ("(1+2)-3", "3"),
    ("x-3", "3"),
    ("- 3", "3"),  # a list's bullet
    ("10 - 3", "3"),
    ("x = - 3", "-3"),
    ("pages 2–3", "3"),
    ("12 and 345", "345"),
    ("2020 300", "300"),
    ("3.14 159", "159"),
    ("They bought 12 100-dollar bills", "100"),
    ("room 5 200", "200"),
    ("1 2 345", "345"),
    ("12\n345", "345"),
    ("1,234 567", "567"),
    ("1{,}23", "23"),
    ("8\\text{,}000", "8000"),
    ("1.5 \\times 10^3", "1500"),
    ("\\boxed{2\\cdot10^{-2}}", "0.02"),
    ("2 × 10 = 20", "20"),
    ("2*10**3", "2000"),
    ("1/2", "2"),
    ("1.5e3", "1500"),
    ("27 or 28", "28"),
    ("9 + 18 = 27\n\nThat is it!", "27"),
    ("9" * 5000, "9" * 5000),
]


@pytest.mark.parametrize(("text", "number"), ENDS_IN, ids=[text[:20] for text, _ in ENDS_IN])
def test_exact_number_is_the_last_number(text, number):
    assert exact_number(text, number) == 1.0
    assert exact_number(text, f"{number}.5" if number.isdigit() else f"{number}5") == 0.0
    assert exact_number(text, f"-{number}".replace("--", "")) == 0.0


def test_exact_number_reads_the_answer_as_a_number_too():
    assert [exact_number("1000", answer) for answer in ("1,000", "$1000", "1000.00", " 1e3 ")] == [1.0] * 4
    assert [exact_number("0.30001", "0.3"), exact_number("0.30", "0.3")] == [0.0, 1.0]  # no rounding


# How people and models write a number, given as Python writes it; None where the way doesn't apply to it.


def apart(gap):
    """1234567 as 1␣234␣567, with this gap."""
    return lambda number: f"{Decimal(number):,}".replace(",", gap) if abs(Decimal(number)) >= 1000 else None


def around(before, after=""):
    return lambda number: f"{before}{number}{after}"


def signed(before):
    """A currency, after the sign."""
    return lambda number: f"-{before}{number[1:]}" if number[0] == "-" else f"{before}{number}"


def minus(sign):
    return lambda number: f"{sign}{number[1:]}" if number[0] == "-" else None


def wide(number):
    return number.translate(str.maketrans("0123456789.-", "０１２３４５６７８９．－"))


GAPS = [",", "{,}", ",\\!", "{,}\\!", "\\,", "\\;", "\\:", "\\ ", "~", "\u2009", "\u202f", "\u00a0", "'", "’"]
WAYS = {f"gap {gap!r}": apart(gap) for gap in GAPS}
WAYS |= {f"coin {coin}": signed(coin) for coin in ("\\$", "€", "£", "¥", "₹", "€ ")}
WAYS |= {f"sign {sign}": minus(sign) for sign in "−–‑－"}
WAYS |= {f"then {after}": around("", after) for after in (".", " €", "€", " km", "\\text{ km}", " apples.")}
WAYS |= {"wide": wide, "text": around("\\text{", "}"), "equation": around("x = "), "plain": around("")}
NUMBERS = ["5", "18", "80", "-3", "1234", "10080", "1234567", "-32348", "1234.5"]
WRITTEN = [(way, number, write(number)) for way, write in WAYS.items() for number in NUMBERS if write(number)]
OTHERS = [*NUMBERS, "0", "234", "567", "348", "32348", "3"]  # among them what is left where a gap is not understood


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_number_is_that_number_and_no_other(way):
    for _, number, text in (row for row in WRITTEN if row[0] == way):
        for completion in (text, f"\\boxed{{{text}}}", f"It is **{text}**", f"The answer is {text}."):
            assert [other for other in {number, *OTHERS} if exact_number(completion, other) == 1.0] == [number]
        assert (math_equal(f"\\boxed{{{text}}}", number), math_equal(f"\\boxed{{{text}}}", "81")) == (1.0, 0.0)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_number_can_be_the_answer(way):
    for _, number, text in (row for row in WRITTEN if row[0] == way):
        found = [math_equal(f"\\boxed{{{other}}}", text) for other in (number, text, "81", f"{number}1")]
        assert found == [1.0, 1.0, 0.0, 0.0], text
        if "km" not in text and "apples" not in text and "x" not in text:
            assert parse_number(text) == Decimal(number), text


def test_a_common_space_sets_digits_apart_where_nothing_else_stands():
    read = [parse_number(text) for text in ("1 234 567", "-10 080", "1 234.5", "12 34")]
    assert read == [Decimal("1234567"), Decimal("-10080"), Decimal("1234.5"), None]
    assert math_equal("\\boxed{1234567}", "1 234 567") == 1.0
    assert math_equal("\\boxed{567}", "1 234 567") == 0.0


@pytest.mark.parametrize("answer", ["18.", "\\$18", "$18", "**18**", "`18`", " 18 ", "18€."])
def test_an_answer_with_something_around_it_is_its_number(answer):
    assert parse_number(answer) == 18
    for completion in ("The answer is 18.", "\\boxed{18}", "18", "#### 18", "\\boxed{\\$18}", "It is `18`."):
        assert (exact_number(completion, answer), math_equal(completion, answer)) == (1.0, 1.0)
        assert (exact_number(completion, "81."), math_equal(completion, "81.")) == (0.0, 0.0)


def test_math_equal_keeps_the_commas_of_pairs_and_the_dots_of_brackets():
    assert math_equal("\\boxed{(1, 234)}", "(1,234)") == 1.0
    assert math_equal("\\boxed{1234}", "(1,234)") == 0.0
    cases = "\\left\\{\\begin{array}{l}x=1\\\\y=2\\end{array}\\right."
    assert math_equal(f"\\boxed{{{cases}}}", cases) == 1.0


@pytest.mark.parametrize("text", ["", "twenty-seven", "٢٧", "\ud800", "-", "$", ",,,", "²"])
def test_exact_number_without_a_number_is_0(text):
    assert exact_number(text, "27") == 0.0


@pytest.mark.parametrize("answer", ["", "1/2", "x", "27 apples", "50%", "1 2", "nan", "1,00"])
def test_exact_number_refuses_an_answer_that_is_no_number(answer):
    assert parse_number(answer) is None
    with pytest.raises(ValueError, match="answer must be one plain number, got"):
        exact_number("27", answer)


def test_exact_number_is_quick_on_long_texts():
    started = time.process_time()
    parts = ("1", "1,", "1,111", "-", "1e", "$", ".", " 111", "= - ", "{,}\\!")
    for text in (part * (2 * 10**5 // len(part)) for part in parts):
        exact_number(text, "27")
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("so it is \\boxed{\\frac{2}{4}}", "\\frac{1}{2}"),
        ("The final answer is $0.5$.", "\\frac{1}{2}"),
        ("First \\boxed{3}, no: \\boxed{4}", "\\{3, 4\\}"),
        ("First $\\boxed{3}$, no: $\\boxed{4}$", "4"),
        ("$2x + 1$", "1 + 2x"),
        ("27", "27"),
        ("\\boxed{1,000}", "1000"),
        ("\\boxed{(1, 2)}", "$(1, 2)$"),
        ("\\boxed{7}", "\\boxed{7}"),
    ],
)
def test_math_equal(completion, answer):
    assert math_equal(completion, answer) == 1.0
    assert math_equal(completion, "\\frac{1}{7}") == 0.0
    assert math_equal("", answer) == 0.0


@pytest.mark.parametrize(
    "text",
    ["\\boxed{", "$\\frac", "\\boxed{" * 2000, "(" * 50000, "\ud800", "$\\begin{pmatrix}1&2\\\\$", "\x00", "1/0"],
)
def test_math_equal_survives_broken_texts(text):
    assert math_equal(text, "\\frac{1}{3}") == 0.0


def helper_id():
    return verifier._helper().pid


@pytest.mark.parametrize("text", ["$9^{9^{9^{9}}}$", "9**9**9**9"])
def test_math_equal_ends_what_hangs_and_goes_on(monkeypatch, text):
    assert math_equal("\\boxed{5}", "5") == 1.0
    before = helper_id()
    monkeypatch.setattr(rewards, "SECONDS", 0.5)
    started = time.perf_counter()
    assert math_equal(text, "1") == 0.0
    assert time.perf_counter() - started < 5
    monkeypatch.undo()
    assert math_equal("\\boxed{5}", "5") == 1.0
    assert helper_id() != before


def test_math_equal_works_in_threads_and_keeps_them_apart():
    texts, found = [f"\\boxed{{{n}}}" for n in range(40)], {}

    def work(part):
        for n in range(part, 40, 4):
            found[n] = math_equal(texts[n], str(n // 2 * 2))  # the even ones are right

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: float(n % 2 == 0) for n in range(40)}


@pytest.mark.skipif(os.name != "posix", reason="alarms are a matter of POSIX")
def test_math_equal_leaves_the_callers_alarm_alone():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 100)
        assert math_equal("\\boxed{5}", "5") == 1.0
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 50
        assert not rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_helper_that_someone_killed_is_replaced():
    assert math_equal("\\boxed{5}", "5") == 1.0
    verifier._helper().kill()
    verifier._helpers[os.getpid()].wait()
    assert math_equal("\\boxed{5}", "5") == 1.0


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGINT to send")
def test_ctrl_c_in_the_terminal_does_not_end_the_helper():
    assert math_equal("\\boxed{5}", "5") == 1.0
    before = helper_id()
    os.kill(before, signal.SIGINT)
    assert math_equal("\\boxed{5}", "5") == 1.0
    assert helper_id() == before


def test_an_interrupted_call_does_not_answer_the_next(monkeypatch):
    math_equal("\\boxed{5}", "5")
    helper = verifier._helper()

    class Interrupted:
        pipe = helper.stdout

        def readline(self):
            raise KeyboardInterrupt

        def __getattr__(self, name):
            return getattr(self.pipe, name)

    with monkeypatch.context() as patch:
        patch.setattr(helper, "stdout", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            verifier.call("math_equal", "\\boxed{5}", "5", seconds=5)  # its True stays unread
    assert verifier.call("math_equal", "\\boxed{6}", "5", seconds=5) is False


def test_a_missing_package_is_not_a_reward_of_0(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ModuleNotFoundError('gone', name='math_verify')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    verifier._end()
    try:
        with pytest.raises(ValueError, match=r"math_verify is not installed: pip install 'minigrpo\[llm\]'"):
            math_equal("5", "5")
    finally:
        verifier._end()


FOLLOWS = {
    "boxed": ["\\boxed{27}", "so $\\boxed{\\frac{1}{2}}$.\n", "\\boxed{1} or \\boxed{2}"],
    "hashes": ["9 + 18 = 27\n#### 27", "#### -1,000\n", "####27."],
    "think": ["<think>hm</think> 27", "\n<think></think>\n27\n"],
    "answer": ["it is <answer>27</answer>", "<answer>\n27\n</answer>\n"],
}
FAILS = {
    "boxed": [
        "27",
        "\\boxed{27} it is",
        "\\boxed{27",
        "\\boxed{}",
        "\\boxed{ }",
        "\\boxed{1} + {2}",
        "\\boxed{1}}",
        "{1}",
    ],
    "hashes": ["27", "#### ", "#### 27 apples", "#### 27\nDone", "####\n27", "### 27"],
    "think": ["27", "<think>27", "<think>a</think>", "so <think>a</think> 27", "</think><think> 27", "<think>" * 2],
    "answer": [
        "27",
        "<answer>27",
        "<answer></answer>",
        "<answer>27</answer> it is",
        "<answer>1</answer>" * 2,
        "</answer>",
    ],
}


@pytest.mark.parametrize("name", FOLLOWS)
def test_format_reward(name):
    reward = format_reward(name)
    assert [text for text in FOLLOWS[name] if reward(text, "27") != 1.0] == []
    assert [text for text in ["", "\ud800", *FAILS[name]] if reward(text, "27") != 0.0] == []
    assert [reward(FOLLOWS[name][0], answer) for answer in ("", "other")] == [1.0, 1.0]  # no answer is read


def test_format_reward_names():
    assert set(FOLLOWS) == set(FAILS) == set(rewards.FORMATS)
    with pytest.raises(ValueError) as error:
        format_reward("box")
    assert str(error.value) == "name must be one of answer, boxed, hashes, think, got 'box'"


def test_rewards_by_name():
    assert set(REWARDS) == {"exact_number", "math_equal", *(f"format_{name}" for name in FOLLOWS)}
    assert REWARDS["exact_number"] is exact_number
    assert REWARDS["format_hashes"]("#### 1", "2") == 1.0
    assert {type(reward("\\boxed{27}", "27")) for reward in REWARDS.values()} == {float}


def test_import_is_light_and_starts_nothing():
    code = "import sys; from minigrpo.llm import tasks, rewards, verifier; "
    code += "print(verifier._helpers, {'datasets', 'reasoning_gym', 'math_verify', 'sympy'} & set(sys.modules))"
    # torch loads sympy by itself on some versions: only what we would add counts
    code = "import torch, sys; before = set(sys.modules); " + code.replace(
        "set(sys.modules)", "set(sys.modules) - before"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "{} set()\n"
