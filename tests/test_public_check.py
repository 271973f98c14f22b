"""The public check says what is wrong in words that are true: of an answer, of its form, or of what the code raised."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from grader import grade
from grader.check import attempt, public_report
from grader.exercise import difference
from grader.labs import find_exercise
from grader.results import Grading
from grader.sandbox import Answer, Failure, Worker, best_isolation, bubblewrap_problem


def report(ident: str, function) -> str:
    lines, passed = public_report(find_exercise(ident), function)
    assert not passed
    return "\n".join(lines)


# Numbers that look alike


def step_rewards_in_float32(rewards, completion_ids, completion_mask):
    """As most people begin: zeros, then two loops."""
    result = torch.zeros(completion_ids.shape)
    for i, t in completion_mask.nonzero().tolist():
        same = (completion_ids[:, : t + 1] == completion_ids[i, : t + 1]).all(dim=1) & completion_mask[:, t]
        result[i, t] = rewards[same].sum() / (same.sum() + 1e-8)
    return result


def loss_in_float32(logps, old_logps, advantages, completion_mask, epsilon):
    total = torch.zeros(())
    for i, t in completion_mask.nonzero().tolist():
        ratio = (logps[i, t] - old_logps[i, t].detach()).exp()
        limited = ratio.clamp(1 - epsilon, 1 + epsilon)
        total = total + torch.minimum(ratio * advantages[i], limited * advantages[i]).float()
    return -total / completion_mask.sum()


def process_loss_in_float32(logps, old_logps, ref_logps, advantages, sets, completion_mask, beta):
    members = sets.float()
    A = torch.einsum("ijt,j->it", members, advantages.float()) / members.sum(dim=1).clamp(min=1)
    log_ratio = ref_logps.detach() - logps
    terms = (logps - old_logps.detach()).exp() * A - beta * (log_ratio.exp() - log_ratio - 1)
    return -terms[completion_mask].mean()


@pytest.mark.parametrize(
    ("ident", "function"),
    [
        ("lab03.1", step_rewards_in_float32),
        ("lab01.3", loss_in_float32),
        ("lab04.1", process_loss_in_float32),
    ],
)
def test_right_numbers_in_float32_are_right(ident, function):
    exercise = find_exercise(ident)
    assert public_report(exercise, function)[1]
    for part in exercise.parts:
        for seed in range(5):
            assert attempt(exercise, function, exercise.case(part, seed, 0)).wrong is None, (part.name, seed)


def test_where_six_digits_agree_the_gap_is_said():
    third = torch.tensor([0.0, 1 / 3], dtype=torch.float64)
    assert difference(third, third.float(), 1e-9, "it") == (
        "it: 1 of 2 entries are wrong, first at [1]: expected 0.333333, got 0.333333, off by 1e-08 (float32?)"
    )
    assert difference(third[1:], third[1:] + 1e-8, 1e-9).endswith("got 0.333333, off by 1e-08")
    assert difference(0.5, 0.5 - 5e-9, 1e-9) == "the answer: expected 0.5, got 0.5, off by 5e-09"
    assert difference(torch.tensor([2**30]), torch.tensor([2**30 + 1]), 1e-9).endswith("off by 1")
    assert difference(0.5, 0.6, 1e-9) == "the answer: expected 0.5, got 0.6"


# Answers of another form


@pytest.mark.parametrize(
    ("ident", "function", "sentence"),
    [
        ("lab03.3", lambda *_, **__: 0.5, "the answer must be a tuple, got 0.5"),
        ("lab03.3", lambda *_, **__: None, "the answer must be a tuple, got None"),
        ("lab03.3", lambda *_, **__: (0.5, 0.1, 3), "the answer must hold 2 items, got 3"),
        ("lab03.3", lambda *_, **__: ("0.5", 0.1), "the answer[0] must be a number, got '0.5'"),
        ("lab01.3", lambda logps, **_: logps.sum().item(), "the answer['loss'] must be a torch.Tensor, got -"),
        ("lab01.3", lambda logps, **_: logps, "the answer['loss'] must have shape (), got (4, 5)"),
        ("lab04.1", lambda logps, **_: None, "the answer['loss'] must be a torch.Tensor, got None"),
        ("lab06.1", lambda **_: 0.25, "the answer['loss'] must be a torch.Tensor, got 0.25"),
        ("lab04.4", lambda *_: None, "the answer can't be graded: the answer must be a number, got None"),
        ("lab04.4", lambda a, b, theta: theta, "the answer can't be graded: the answer must be a number, got tensor("),
        ("lab06.2", lambda **_: None, "the answer can't be graded: TrapEnv must be a gymnasium.Env, got None"),
        ("lab06.3", lambda *_, **__: 0.5, "the answer must be two numbers, low and high"),
        ("lab08.7", lambda *_, **__: 0.5, "the answer['output'] must be a torch.Tensor, got 0.5"),
        ("lab02.3", lambda sizes: {0, 1}, "the answer can't be graded: set is none of numbers, text, lists, dicts"),
        ("lab02.3", lambda sizes: {1: 2}, "the answer can't be graded: a dict's keys must be text, got int"),
        ("lab00.1", lambda rewards: float("nan"), "the answer can't be graded: the value holds NaN or an infinity"),
        ("lab01.1", lambda rewards, eps: np.array([1.0]), "the answer[0] must have shape"),
    ],
)
def test_an_answer_of_another_form_is_no_exception_of_the_students(ident, function, sentence):
    said = report(ident, function)
    assert f"\n  {sentence}" in said
    assert "\n  expected " in said
    assert "raised" not in said


def test_a_loss_without_a_gradient_is_told_from_its_gradient():
    exercise = find_exercise("lab01.3")
    said = report("lab01.3", lambda **arguments: exercise.reference(**arguments).detach())
    assert "the answer['grads']['logps']: " in said
    assert "raised" not in said


@pytest.mark.parametrize("error", [SystemExit("enough"), ValueError("enough"), RuntimeError("enough")])
def test_what_the_students_code_raises_is_said_to_be_its_own(error):
    def raises(*args, **kwargs):
        raise error

    for ident in ("lab00.1", "lab01.1", "lab01.3", "lab03.3", "lab04.4", "lab06.2", "lab06.3", "lab08.7"):
        assert report(ident, raises).splitlines()[-1] == f"  your code raised {type(error).__name__}: enough"


def test_not_written_yet_is_said_of_the_stub_alone():
    def stub(rewards):
        raise NotImplementedError("lab00.1")

    def device(rewards):
        raise NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device.")

    assert report("lab00.1", stub) == "lab00.1: not written yet (`group_mean` raises NotImplementedError)."
    assert "your code raised NotImplementedError: The operator" in report("lab00.1", device)


# The check and the sandbox


NATURAL = {
    "lab00.1": "def group_mean(rewards): return np.mean(rewards)",
    "lab02.3": """
def process_steps(sizes):
    starts = np.flatnonzero(np.diff(sizes, prepend=0))
    return np.stack([starts, [*starts[1:], len(sizes)]], axis=1).astype(np.int16)""",
    "lab03.4": """
def bias_and_variance(estimates, truth):
    bias = torch.nn.Parameter(estimates.mean(0) - truth)
    return OrderedDict(bias=bias, variance=estimates.var(0).numpy())""",
    "lab04.4": "def gradient_gap(loss_a, loss_b, theta): pass",
}


def test_a_sandbox_accepts_what_the_check_accepts():
    if best_isolation() != "bubblewrap":
        pytest.skip(bubblewrap_problem())
    setup = "import numpy as np\nimport torch\nfrom collections import OrderedDict"
    namespace: dict = {}
    exec("\n".join([setup, *NATURAL.values()]), namespace)
    with Worker(list(NATURAL.items()), setup=setup, isolation="bubblewrap") as worker:
        for ident in NATURAL:
            exercise = find_exercise(ident)
            case = exercise.case(exercise.parts[0], 7, 0)
            answer = worker.ask(exercise.driver, exercise.function, case, seconds=60)
            if ident == "lab04.4":
                assert answer == Failure("protocol", "the answer must be a number, got None")
            else:
                assert grade._attempt(exercise, case, answer).passed, answer
                assert public_report(exercise, namespace[exercise.function])[1]


# What is not known is not said


def test_a_hint_is_no_diagnosis():
    said = report("lab00.1", lambda rewards: 17.0)
    part = find_exercise("lab00.1").parts[0]
    assert "It looks like" not in said
    assert said.endswith(f"It is no mistake that we know by name. What “{part.name}” asks for: {part.hint}")


def test_a_form_that_is_right_is_no_case_that_passes():
    exercise = find_exercise("lab08.1")
    lines, passed = public_report(exercise, exercise.reference)
    assert passed
    assert lines == ["lab08.1: the form is right, nothing else was looked at. Hidden cases decide its 6 points."]
    said = report("lab08.1", lambda: {"a": "KL rewarded"})
    assert said.splitlines()[0] == "lab08.1: the form is not right."
    assert not [word for word in ("another bug", "run =", "hint", "Hint", "public case") if word in said]


def test_of_several_calls_the_one_that_fails_is_shown_in_full():
    exercise = find_exercise("lab01.1")
    said = report("lab01.1", lambda rewards, eps: exercise.reference(rewards, eps) + (rewards.shape[-1] == 1))
    assert "a group of one" in said
    assert "calls[1]['rewards'] = [[" in said
    assert "calls[1]['eps'] = 0." in said
    assert "calls[0]" not in said
    assert "expected [[0.0], [0.0]]\n  got      [[1.0], [1.0]]" in said


def test_expected_and_got_are_written_alike():
    said = report("lab02.3", lambda sizes: [(0, len(sizes))]).splitlines()
    assert said[-3:-1] == ["  expected [[0, 3], [3, 5], [5, 7]]", "  got      [[0, 7]]"]
    said = report("lab03.4", lambda estimates, truth: {"bias": np.zeros(2), "variance": torch.ones(2)}).splitlines()
    assert said[-3] == "  expected {'bias': [1.0, -0.5], 'variance': [7.0, 0.25]}"
    assert said[-2] == "  got      {'bias': [0.0, 0.0], 'variance': [1.0, 1.0]}"


# What costs a part costs no more


def stumbles(arguments, expected, answer):
    return {answer: "never reached"}


def test_a_judge_that_raises_costs_its_part_alone(monkeypatch):
    exercise = find_exercise("lab02.1")

    def judge(arguments, expected, answer):
        stumbles(arguments, expected, answer) if answer == [] else None
        return exercise.judge(arguments, expected, answer)

    class Odd:
        """Answers rightly, but for the part of identical completions."""

        loaded, alive, cell_errors = True, True, ()

        def __init__(self, *_, **__): ...
        def __enter__(self): ...
        def __exit__(self, *_): ...

        def ask(self, driver, function, case, *, seconds):
            return Answer([] if len(case["completions"]) == 7 else exercise.run(exercise.reference, case))

    monkeypatch.setattr(grade, "Worker", Odd)

    class Submission:
        cells_for = staticmethod(lambda ident: [])
        left_out = staticmethod(lambda ident: [])

    parts = grade.grade_exercise(
        replace(exercise, judge=judge), Submission, Grading("lab02", {"setup": ""}, 5, "reduced")
    )
    assert [part.earned for part in parts] == [2, 0, 1]
    assert parts[1].feedback == grade.KINDS["protocol"]


def test_a_judge_that_raises_is_said_in_a_sentence():
    lines, passed = public_report(replace(find_exercise("lab02.1"), judge=stumbles), lambda completions: [])
    assert not passed
    (line,) = [line for line in lines if line.startswith("  the answer can't be graded: the judge stumbled over it (")]
    assert "unhashable type: 'list'" in line  # each Python has words of its own around these


def test_code_that_takes_too_long_is_named_while_it_runs(capsys):
    exercise = replace(find_exercise("lab00.1"), seconds=0.02)

    def slow(rewards):
        time.sleep(0.05)
        return sum(rewards) / len(rewards)

    assert public_report(exercise, slow)[1]
    assert "lab00.1: still running after 0.02 seconds" in capsys.readouterr().out
    assert public_report(find_exercise("lab00.1"), slow)[1]
    time.sleep(0.05)
    assert capsys.readouterr().out == ""
