"""Lab 09, from toy to language model: its exercises and its files."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from grader.exercise import Artifact, Case, Exercise, Mistake, Part
from minigrpo.files import METRICS

RECIPES: dict[str, dict[str, Any]] = {  # what the lab tells students to start from
    "tiny": {"updates": 60, "prompts": 8, "group_size": 8, "learning_rate": 1e-3, "eval_size": 200},
    "smollm2-135m": {
        "updates": 12,
        "prompts": 4,
        "group_size": 8,
        "learning_rate": 2e-4,
        "temperature": 0.7,
        "eval_size": 60,
    },
}


# lab09.1: the verifier

NUMBER = r"(?:(?<![0-9A-Za-z)])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"


def _last_number(text: str, pattern: str = NUMBER) -> float | None:
    found = re.findall(pattern, text)
    return float(found[-1].replace(",", "")) if found else None


def extract_answer(completion: str) -> float | None:
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", completion)
    return _last_number(boxes[-1] if boxes else completion)


def answer_that_comes_first(completion):
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", completion)
    found = re.findall(NUMBER, boxes[0] if boxes else completion)
    return float(found[0].replace(",", "")) if found else None


def answer_without_boxes(completion):
    return _last_number(completion)


def answer_without_signs(completion):
    found = extract_answer(completion)
    return None if found is None else abs(found)


def answer_with_every_minus(completion):
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", completion)
    return _last_number(boxes[-1] if boxes else completion, NUMBER.replace("(?<![0-9A-Za-z)])", ""))


def answer_without_commas(completion):
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", completion)
    return _last_number(
        boxes[-1] if boxes else completion, r"(?:(?<![0-9A-Za-z)])-)?[0-9]+(?:\.[0-9]+)?"
    )


def answer_of_digits(completion):
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", completion)
    return _last_number(boxes[-1] if boxes else completion, r"(?:(?<![0-9A-Za-z)])-)?[0-9][0-9,]*")


def answer_zero_where_none(completion):
    return extract_answer(completion) or 0.0


def judge_answers(arguments: Case, expected: list, answer: Any) -> str | None:
    """Judge each text's answer as a number, so that 27 and 27.0 are one, or None."""
    if not isinstance(answer, list) or len(answer) != len(expected):
        return "there must be one answer for each text"
    for text, want, got in zip(arguments["completions"], expected, answer, strict=True):
        number = isinstance(got, (int, float, np.integer, np.floating)) and not isinstance(
            got, bool
        )
        if not (got is None if want is None else number and float(got) == want):
            return f"{text!r}: expected {want}, got {got!r}"
    return None


def texts(*patterns: str):
    """Draw texts from patterns: {a}, {b}, {c} are small numbers, {k} and {m} thousands and millions with commas.

    {t} and {y} have three and four digits.
    """

    def draw(rng: np.random.Generator) -> Case:
        filled = []
        for pattern in patterns:
            a, b, c = (int(n) for n in rng.integers(2, 100, size=3))
            t, y, k, m = (int(rng.integers(10**n, 10 ** (n + 1))) for n in (2, 3, 4, 7))
            filled.append(pattern.format(a=a, b=b, c=c, t=t, y=y, k=f"{k:,}", m=f"{m:,}"))
        return {"completions": filled}

    return draw


# lab09.2: settings that fit


def choose_settings(
    completions: int,
    success: float,
    tokens: int,
    memory_gb: float,
    model_gb: float,
    mb_per_token: float,
) -> dict[str, int]:
    group_size = next(G for G in _divisors(completions) if _useful(success, G) or completions == G)
    return {
        "prompts": completions // group_size,
        "group_size": group_size,
        "micro_batch": max(
            b
            for b in _divisors(completions)
            if model_gb + _gb(b, tokens, mb_per_token) <= memory_gb
        ),
    }


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _useful(success: float, group_size: int) -> bool:
    return 1 - success**group_size - (1 - success) ** group_size >= 0.9


def _gb(rows: int, tokens: int, mb_per_token: float, gb: int = 1000) -> float:
    return rows * tokens * mb_per_token / gb


def settings_with(*, useful=_useful, divisors=_divisors, gb=1000, start=None, otherwise=None):
    """The settings with one rule exchanged; `otherwise` is G where no divisor does."""

    def settings(completions, success, tokens, memory_gb, model_gb, mb_per_token):
        sizes = divisors(completions)
        group_size = next((G for G in sizes if useful(success, G)), otherwise or completions)
        room = memory_gb - (model_gb if start is None else start)
        fits = [b for b in sizes if _gb(b, tokens, mb_per_token, gb) <= room]
        return {
            "prompts": completions // group_size,
            "group_size": group_size,
            "micro_batch": max(fits, default=1),
        }

    return settings


def settings_for_whole_batches(**arguments):
    return choose_settings(**arguments) | {"micro_batch": arguments["completions"]}


def settings_of_groups(**arguments):
    return choose_settings(**arguments) | {"prompts": arguments["completions"]}


def judge_settings(arguments: Case, expected: dict, answer: Any) -> str | None:
    """Judge the rules one after the other, and name the one that is broken."""
    if not isinstance(answer, dict) or set(answer) != set(expected):
        return f"the answer must be a dict with the keys {', '.join(expected)}"
    for name, value in answer.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            return f"{name} must be a whole number of at least 1, got {value!r}"[:200]
    if answer == expected:
        return None
    if answer["prompts"] * answer["group_size"] != arguments["completions"]:
        return "prompts × group_size must be the number of completions"
    for name, why in (
        (
            "group_size",
            "is not the smallest divisor with which 90% of groups have rewards that differ, or all of them",
        ),
        ("micro_batch", "is not the largest divisor that fits into the memory"),
    ):
        if answer[name] != expected[name]:
            return f"{name} {answer[name]} {why}"
    return "prompts must be the number of completions, divided by group_size"


def draw_machine(
    success: tuple[float, float], rows: float | None = None, completions: tuple[int, ...] = (48, 96)
):
    """Draw a machine and a task: the chance of success, and the rows that its memory holds beside the model.

    rows None: nearly 8 or 16, so that of 48 or 96 completions the most that divides is 6 or 12.
    """

    def draw(rng: np.random.Generator) -> Case:
        tokens, mb = int(rng.integers(8, 40)) * 16, round(float(rng.uniform(0.2, 2.0)), 2)
        held = rows or float(rng.choice([8, 16]) * rng.uniform(0.985, 0.995))
        # if forgotten, more rows fit
        model_gb = round(_gb(1, tokens, mb) * held * float(rng.uniform(1.2, 1.8)), 2)
        chance = round(float(rng.uniform(*success)), 3)
        return {
            "completions": int(rng.choice(completions)),
            "success": chance,
            "tokens": tokens,
            "memory_gb": round(model_gb + _gb(1, tokens, mb) * held, 5),
            "model_gb": model_gb,
            "mb_per_token": mb,
        }

    return draw


WORKED_MACHINE = {
    "completions": 64,
    "success": 0.5,
    "tokens": 200,
    "memory_gb": 4.0,
    "model_gb": 2.0,
    "mb_per_token": 0.5,
}


# lab09.3: the adapter


def grade(contents, seed: int) -> list[dict]:
    # loads transformers, which the other exercises have no need of
    from grader.adapters import grade

    return grade(contents, seed)


ARTIFACTS = (
    Artifact(
        id="lab09.3",
        points=6,
        files=("adapter_model.safetensors", "adapter_config.json", METRICS),
        grade=grade,
    ),
)
EXERCISES = (
    Exercise(
        id="lab09.1",
        function="extract_answer",
        reference=extract_answer,
        driver="lab09_each_text",
        judge=judge_answers,
        parts=(
            Part(
                name="the last number",
                points=1,
                draw=texts(
                    "{a}+{b}-{c}={a}", "First {a}, then {b}.", "No number here.", "", "It is {c}."
                ),
                hint="the last number in the text is the answer; where there is none it is None.",
                examples=({"completions": ["25-4=21", "I can't."]},),
            ),
            Part(
                name="boxes",
                points=1,
                draw=texts(
                    "\\boxed{{{a}}}, thus {b}",
                    "\\boxed{{{a}}} or \\boxed{{{b}}}. I tried {c} ways.",
                    "\\boxed{{none}} {c}",
                    "\\boxed{{{a}}}, no: \\boxed{{none}}",
                    "\\boxed{{{a} or {b}}}, after {c} tries",
                ),
                hint="the last \\boxed{…} goes before all numbers outside of boxes; a box without a "
                "number holds no answer.",
                examples=({"completions": ["\\boxed{7} after 3 tries"]},),
            ),
            Part(
                name="signs",
                points=1,
                draw=texts(
                    *("{a}-{b}", "={a}+{b}=-{c}", "x-{c}", "X-{c}", "(-{a})", "\\boxed{{-{c}}}"),
                    *("({a})-{b}", "{a} - {b}", "{a} -{b}"),
                ),
                hint="a minus is a sign, unless a digit, a letter or a closing bracket stands right before it.",
                examples=({"completions": ["10-3", "=-3"]},),
            ),
            Part(
                name="commas and decimals",
                points=2,
                draw=texts(
                    *(
                        "{k} in all",
                        "{m} of {m}",
                        "{a}, {b}",
                        "{a}.{b}",
                        "{k}.{a}",
                        "{a}.",
                        "{a},{b}",
                        "-{k}",
                    ),
                    *("{a},{y}", "{y},{t}"),
                ),
                hint="1,000 is one number, but 1, 2 and 1,2 and 7,2024 are two; 27. ends a sentence, "
                "27.5 is a decimal.",
                examples=({"completions": ["1,000", "1, 2", "27."]},),
            ),
        ),
        mistakes=(
            Mistake(
                name="first",
                hint="you take the first number or box; models think before they answer.",
                wrong=answer_that_comes_first,
            ),
            Mistake(
                name="no boxes",
                hint="you don't look for \\boxed{…}, which goes before all other numbers.",
                wrong=answer_without_boxes,
            ),
            Mistake(
                name="no signs",
                hint="you lose the minus of negative answers.",
                wrong=answer_without_signs,
            ),
            Mistake(
                name="every minus",
                hint="you take every minus for a sign: 10-3 is a difference, and ends in 3.",
                wrong=answer_with_every_minus,
            ),
            Mistake(
                name="no commas",
                hint="1,000 is one number to its reader, and two to your code.",
                wrong=answer_without_commas,
            ),
            Mistake(
                name="digits and commas only",
                hint="your number ends at the point, or takes every comma: 1,2 is two numbers and 2.5 is one.",
                wrong=answer_of_digits,
            ),
            Mistake(
                name="0 where none",
                hint="no number is None: 0 could be right by accident.",
                wrong=answer_zero_where_none,
            ),
        ),
    ),
    Exercise(
        id="lab09.2",
        function="choose_settings",
        reference=choose_settings,
        judge=judge_settings,
        parts=(
            Part(
                name="an ordinary task",
                points=1,
                draw=draw_machine((0.55, 0.8)),
                hint="take the smallest group and the largest micro-batch that the rules allow, both divisors.",
                examples=(WORKED_MACHINE,),
            ),
            Part(
                name="a task that nearly always works",
                points=1,
                draw=draw_machine((0.9, 0.95)),
                hint="a group in which all are right teaches as little as one in which all are wrong.",
            ),
            Part(
                name="a hard task and a small update",
                points=1,
                draw=draw_machine((0.12, 0.17), rows=1.98, completions=(12,)),
                hint="where no divisor makes it at most 0.1, one group holds all: G = `completions`.",
                examples=(WORKED_MACHINE | {"completions": 12, "success": 0.15},),
            ),
            Part(
                name="little memory",
                points=1,
                draw=draw_machine((0.1, 0.4), rows=1.5),
                hint="the model itself takes memory; what is left holds rows of all their tokens.",
            ),
        ),
        mistakes=(
            Mistake(
                name="all right counts",
                hint="you ask for one right completion in a group. If all are right their rewards are equal, too.",
                wrong=settings_with(useful=lambda p, G: (1 - p) ** G <= 0.1),
            ),
            Mistake(
                name="all wrong counts",
                hint="you ask for one wrong completion in a group. If all are wrong their rewards are equal, too.",
                wrong=settings_with(useful=lambda p, G: p**G <= 0.1),
            ),
            Mistake(
                name="no group is large enough",
                hint="where no divisor makes it at most 0.1, G is `completions`; yours is 1.",
                wrong=settings_with(otherwise=1),
            ),
            Mistake(
                name="powers of two",
                hint="you try powers of two alone; 48 is divided by 3, 6, 12 and 24, too.",
                wrong=settings_with(
                    divisors=lambda n: [d for d in _divisors(n) if d & (d - 1) == 0]
                ),
            ),
            Mistake(
                name="no divisors",
                hint="group_size and micro_batch have to divide `completions`.",
                wrong=settings_with(divisors=lambda n: range(1, n + 1)),
            ),
            Mistake(
                name="1024",
                hint="1 GB is 1000 MB here, not 1024.",
                wrong=settings_with(gb=1024),
            ),
            Mistake(
                name="model forgotten",
                hint="the model takes its share of the memory first.",
                wrong=settings_with(start=0.0),
            ),
            Mistake(
                name="no micro-batches",
                hint="the whole batch does not fit: a row takes memory for each of its `tokens` tokens.",
                wrong=settings_for_whole_batches,
            ),
            Mistake(
                name="prompts are not completions",
                hint="each prompt has group_size completions: prompts × group_size is the number of completions.",
                wrong=settings_of_groups,
            ),
        ),
    ),
)
