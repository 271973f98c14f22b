"""Problems with verifiable rewards: `load_task("sums")` gives train and held-out problems and the reward.

Which side a problem is on follows from a hash of its text, never from a seed: what one run holds out, no other run
trains on. A seed picks and orders the train problems; the held-out problems are the same for every seed.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigrpo.llm import verifier
from minigrpo.llm.rewards import (
    Reward,
    boxed,
    exact_number,
    math_equal,
    parse_number,
    passing_reward,
)

if TYPE_CHECKING:
    from datasets import Dataset

HELDOUT_SHARE = 0.2
NUMBERS = range(2, 20)  # of the sums: 18² = 324 pairs
PATIENCE = 500  # draws in a row without a new problem before a generator counts as exhausted
PROBE = 50  # problems that tell whether a generator's answers are plain numbers
# golds at most that a reward of the helper process is asked about when a task is loaded
GOLDS = 200
SECONDS = 5.0  # what a generator's own check may take for one completion

Row = tuple[str, str]  # prompt, answer


@dataclass(frozen=True)
class Task:
    """Problems, and the reward that verifies an answer.

    `train` and `heldout` have the text columns "prompt" (the user's message) and "answer", and no prompt in common.
    `reward(completion, answer)` is 1.0 for a right one; for another 0.0, or what a task of TRAPS gives it.
    `max_new_tokens` is enough for a right answer; `system_prompt` goes before the user's message where it isn't None.
    Of `golds_checked` different answers (all; at most GOLDS where the reward is slow) the `unequal_golds` don't get
    reward 1.0 for their own text: they can't be what is meant.
    """

    name: str
    train: Dataset
    heldout: Dataset
    reward: Reward
    max_new_tokens: int
    system_prompt: str | None
    golds_checked: int = 0
    unequal_golds: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """What a task is made from: rows of both sides, the held-out ones in an order that no seed changes.

    `own_text` is the completion that an answer itself would be, None where it tells none.
    """

    train: list[Row]
    heldout: list[Row]
    reward: Reward
    max_new_tokens: int
    system_prompt: str | None = None
    own_text: Callable[[str], str | None] = str


@dataclass(frozen=True)
class _Wanted:
    """What the caller of `load_task` asked for."""

    seed: int
    train_size: int
    heldout_size: int
    options: dict[str, Any]
    split: str | None


def task_names() -> list[str]:
    """List every name that `load_task` knows here: our own, then reasoning_gym's where it is installed."""
    return [*TASKS, *_gym_names()[0]]


def _gym_names() -> tuple[list[str], str]:
    """Names of reasoning_gym's data sets; where it is not installed none, and a reason."""
    try:
        return verifier.call("gym_names"), ""
    except verifier.MissingPackage as error:
        return [], str(error)


def load_task(
    name: str | Path,
    *,
    seed: int = 0,
    train_size: int = 1000,
    heldout_size: int = 200,
    options: dict[str, Any] | None = None,
    split: str | None = None,
) -> Task:
    """Load a task by name, or from a .jsonl file.

    Args:
        name: "arithmetic" (the tiny model's), the same problems with a trap (of TRAPS), "sums", "sums-steps", "gsm8k",
            "open-rs", a data set of reasoning_gym ("chain_sum", …), or the path of a file with one JSON object a line:
            "prompt" (or "problem", "question") and "answer", of which only what follows "####" counts. Further fields
            are free.
        seed: picks and orders the train problems; the held-out ones don't depend on it.
        train_size: training problems at most; a generator gives exactly as many.
        heldout_size: held-out problems at most; a generator gives exactly as many.
        options: keyword arguments of the reasoning_gym data set, such as {"max_terms": 3}.
        split: of a Hub data set, to divide by hash. None: train on "train", hold out "test" where there is one.

    Raises: ValueError for an unknown name (with close ones), a wrong option, a file's line that is wrong (file, line
    and field), too few problems, answers none of which is right by itself, or a package that is missing; OSError for a
    file or data set that can't be read. Warns: where some answers are not right by themselves.
    """
    name, options = str(name), options or {}
    for what, value, least in (
        ("seed", seed, 0),
        ("train_size", train_size, 1),
        ("heldout_size", heldout_size, 1),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{what} must be a whole number of at least {least}, got {value!r}")
    wanted = _Wanted(seed, train_size, heldout_size, options, split)
    known = HUB_IDS.get(name, name)
    is_file = Path(name).suffix.lower() == ".jsonl" or (
        known not in TASKS and "/" in name and Path(name).exists()
    )
    if split is not None and known not in HUB_IDS.values():
        raise ValueError(
            f"split is for {', '.join(HUB_IDS.values())}, got {split!r} for task {name!r}"
        )
    if options and (is_file or known in TASKS):
        raise ValueError(
            f"options are for the tasks of reasoning_gym, got {options} for task {name!r}"
        )
    if fixed := {"seed", "size"} & set(options):
        raise ValueError(
            f"options must not hold {min(fixed)!r}: seed, train_size and heldout_size are arguments"
        )
    if known in TASKS:
        return _task(name, TASKS[known](wanted), wanted)
    if is_file:
        return _task(name, _file(Path(name), wanted), wanted)
    gym, missing = _gym_names()
    if name in gym:
        return _task(name, _gym(name, wanted), wanted)
    close = difflib.get_close_matches(name, [*TASKS, *gym], n=3)
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"the names are {', '.join(TASKS)} and reasoning_gym's"
    )
    if missing:
        hint = f"the names here are {', '.join(TASKS)}, and none of reasoning_gym's: {missing}"
    raise ValueError(f"no task is named {name!r}, nor is it a .jsonl file: {hint}")


def _task(name: str, source: _Source, wanted: _Wanted) -> Task:
    """Cut a source to size, make sure that its sides have no prompt in common, and check its answers."""
    train, heldout = source.train[: wanted.train_size], source.heldout[: wanted.heldout_size]
    both = {prompt for prompt, _ in train} & {prompt for prompt, _ in heldout}
    if both:
        raise ValueError(
            f"task {name!r}: {len(both)} prompts are in train and held-out, such as {min(both)!r}"
        )
    golds = check_golds(
        f"task {name!r}", (answer for _, answer in heldout + train), source.reward, source.own_text
    )
    sides = _dataset(train), _dataset(heldout)
    return Task(name, *sides, source.reward, source.max_new_tokens, source.system_prompt, *golds)


def check_golds(
    what: str, answers: Iterable[str], reward: Reward, own_text: Callable[[str], str | None]
) -> tuple[int, tuple[str, ...]]:
    """Ask the reward about each answer's own text: how many different ones were asked about, and those not right.

    Of a reward other than `exact_number`, which is slow, at most GOLDS are asked about, spread over all.

    Args:
        what: the task or benchmark, for messages.
        answers: its right answers.
        reward: of its completions.
        own_text: what a right completion of an answer would say; None where nobody knows.

    Raises: ValueError where all are wrong. Warns: where some are.
    """
    texts = {
        answer: text for answer in dict.fromkeys(answers) if (text := own_text(answer)) is not None
    }
    apart = 1 if reward is exact_number else max(1, math.ceil(len(texts) / GOLDS))
    asked = list(texts)[::apart]
    unequal = tuple(answer for answer in asked if reward(texts[answer], answer) != 1.0)
    if unequal:
        some = ", ".join(map(repr, unequal[:3])) + (", …" if len(unequal) > 3 else "")
        sentence = (
            f"{what}: {len(unequal)} of {len(asked)} different answers that were checked don't get reward 1.0 for "
            f"their own text, so that right completions may count as wrong: {some}"
        )
        if len(unequal) == len(asked):
            raise ValueError(sentence)
        warnings.warn(sentence, stacklevel=4)
    return len(asked), unequal


def _dataset(rows: list[Row]) -> Dataset:
    from datasets import Dataset

    prompts, answers = zip(*rows, strict=True)
    return Dataset.from_dict({"prompt": prompts, "answer": answers})


# Train or held-out


def _position(key: str) -> float:
    """Where a text stands between 0 and 1: below HELDOUT_SHARE is held-out, always and everywhere."""
    return (
        int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8], "big")
        / 2**64
    )


def _divide(
    rows: Iterable[Row], key: Callable[[Row], str], seed: int, what: str
) -> tuple[list[Row], list[Row]]:
    """Divide rows into train, shuffled by the seed, and held-out, in the order of their hashes.

    Rows of one key are on one side; of one prompt the first row stays. At least one key is on each side.

    Raises: ValueError for fewer than two keys.
    """
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(key(row), {}).setdefault(row[0], row)
    if len(groups) < 2:
        raise ValueError(
            f"{what} must hold at least 2 different problems, one to train on and one to hold out"
        )
    keys = sorted(groups, key=_position)
    cut = sum(_position(k) < HELDOUT_SHARE for k in keys)
    cut = min(max(cut, 1), len(keys) - 1)
    heldout, train = (
        [row for k in part for row in groups[k].values()] for part in (keys[:cut], keys[cut:])
    )
    random.Random(seed).shuffle(train)
    return train, heldout


def _prompt_of(row: Row) -> str:
    return row[0]


# Our own problems


def _arithmetic(wanted: _Wanted) -> _Source:
    """The tiny model's problems, such as "7+18-4=", on the side that `minigrpo.llm.arithmetic` gives them."""
    from minigrpo.llm.arithmetic import all_problems, problems

    def draw(split: str, seed: int, n: int) -> list[Row]:
        n = min(n, len(all_problems(split)))
        return [(prompt, answer) for prompt, answer, _ in problems(split, seed, n)]

    train, heldout = (
        draw("train", wanted.seed, wanted.train_size),
        draw("held-out", 0, wanted.heldout_size),
    )
    return _Source(train, heldout, exact_number, max_new_tokens=24)


# What a wrong answer gets, and what not trying gets; a right one gets 1.
TRAPS = {
    "arithmetic-slope": (0.5, -0.5),  # the opposite of a trap: trying pays, right or wrong
    "arithmetic-flat": (0.0, 0.0),
    "arithmetic-trap-mild": (-0.5, 0.3),
    "arithmetic-trap": (-1.0, 0.7),  # the paper's trap in language: most who try lose
}


def _arithmetic_trap(wanted: _Wanted, wrong: float, passed: float) -> _Source:
    """The tiny model's problems with the worked answer, "25-4=21"; a model that may pass is made by `make_tiny`."""
    from minigrpo.llm.arithmetic import all_problems, problems

    def draw(split: str, seed: int, n: int) -> list[Row]:
        n = min(n, len(all_problems(split)))
        return [(prompt, worked) for prompt, _, worked in problems(split, seed, n)]

    train = draw("train", wanted.seed, wanted.train_size)
    heldout = draw("held-out", 0, wanted.heldout_size)
    reward = partial(passing_reward, wrong=wrong, passed=passed)
    return _Source(train, heldout, reward, max_new_tokens=24)


def _sums(wanted: _Wanted, terms: int, ending: str, max_new_tokens: int) -> _Source:
    """Every sum of so many numbers from 2 to 19; orders of the same numbers are on one side."""
    rows = []
    for numbers in itertools.product(NUMBERS, repeat=terms):
        rows.append((f"What is {' + '.join(map(str, numbers))}? {ending}", str(sum(numbers))))

    def same_numbers(row: Row) -> str:
        numbers = row[0].removeprefix("What is ").partition("?")[0].split(" + ")
        return " + ".join(sorted(numbers, key=int))

    train, heldout = _divide(rows, same_numbers, wanted.seed, "the sums")
    # else both orders of two numbers stand next to each other, and a part is half
    random.Random(0).shuffle(heldout)
    return _Source(train, heldout, exact_number, max_new_tokens)


# reasoning_gym

ANSWER_TAGS = "Give the final answer between <answer> and </answer>."


def _gym(name: str, wanted: _Wanted) -> _Source:
    """Problems of a generator: exact numbers where its answers are plain numbers, else its own check."""
    options = json.dumps(wanted.options, sort_keys=True)
    probe = itertools.islice(_gym_stream(name, options, "probe"), PROBE)
    numeric = all(parse_number(answer or "") is not None for _, answer, *_ in probe)

    def draw(side: str, stream: str, n: int) -> list[Row]:
        rows: dict[str, str] = {}
        idle = 0
        for prompt, answer, seed, item in _gym_stream(name, options, stream):
            right_side = (_position(prompt) < HELDOUT_SHARE) == (side == "held-out")
            usable = not numeric or parse_number(answer or "") is not None
            if right_side and usable and prompt not in rows:
                key = (
                    (answer or "")
                    if numeric
                    else json.dumps({"answer": answer, "seed": seed, "item": item})
                )
                rows[prompt], idle = key, 0
            else:
                idle += 1
            if len(rows) == n:
                return list(rows.items())
            if idle == PATIENCE:
                raise ValueError(
                    f"task {name!r} has about {len(rows)} different {side} problems, {n} were asked for: ask for fewer "
                    "(train_size, heldout_size), or for other problems (options)"
                )
        raise AssertionError("a stream has no end")

    train = draw("train", f"train {wanted.seed}", wanted.train_size)
    heldout = draw("held-out", "held-out", wanted.heldout_size)
    if numeric:
        return _Source(train, heldout, exact_number, max_new_tokens=128)
    return _Source(
        train,
        heldout,
        partial(gym_reward, name, options),
        256,
        ANSWER_TAGS,
        lambda answer: json.loads(answer)["answer"],
    )


def _gym_stream(name: str, options: str, stream: str) -> Iterator[tuple[str, str | None, int, int]]:
    """A generator's problems without end: question, answer, and the seed and item that make it again.

    reasoning_gym makes item i of seed s from s + i: neighbouring seeds share almost everything, so that each chunk has
    a seed from a hash.
    """
    for chunk in itertools.count():
        seed = (
            int.from_bytes(hashlib.sha256(f"{name} {stream} {chunk}".encode()).digest()[:4], "big")
            >> 1
        )
        for start in range(0, verifier.CHUNK, 10):
            try:
                items = verifier.call("gym_items", name, options, seed, start, start + 10)
            except verifier.HelperError as error:
                raise ValueError(
                    f"task {name!r} of reasoning_gym with options {options}: {error}"
                ) from error
            for item, (question, answer) in enumerate(items, start):
                yield question, answer, seed, item


def gym_reward(name: str, options: str, completion: str, answer: str) -> float:
    """Reward 1.0 where the reasoning_gym data set's own check gives its full score of 1, else 0.0.

    The answer is JSON: the generator's own solution (for reading; null where it has none), and the seed and item that
    make the problem again. Read from the completion: what stands in its last <answer>…</answer>; without an <answer>,
    all of it. A check that raises, or takes longer than SECONDS, gives 0.0.

    Args:
        name: of reasoning-gym's data set.
        options: of the data set.
        completion: the text.
        answer: the key of the problem.
    """
    key = json.loads(answer)
    seed, item = key["seed"], key["item"]
    _, found, rest = completion.rpartition("<answer>")
    text = (rest.partition("</answer>")[0] if found else completion).strip()
    # making the problem is not on the clock
    verifier.call("gym_items", name, options, seed, item, item + 1)
    score = verifier.call("gym_score", name, options, seed, item, text, seconds=SECONDS)
    return float(score is not None and score >= 1.0)


# Data sets and files

PROMPT_FIELDS = ("prompt", "problem", "question")
HUB_IDS = {"openai/gsm8k": "gsm8k", "knoveleng/open-rs": "open-rs"}
HASHES = "Reason step by step, and end with a line of four hashes and the number, such as: #### 42"
BOXED = "Reason step by step, and put the final answer within \\boxed{}."


def _gsm8k(wanted: _Wanted) -> _Source:
    """openai/gsm8k: trains on "train" and holds out "test"."""
    load = partial(_hub, "openai/gsm8k", "main", fields=("question", "answer"))
    if wanted.split is not None:
        train, heldout = _divide(
            load(split=wanted.split), _prompt_of, wanted.seed, f"gsm8k's {wanted.split}"
        )
    else:
        heldout = sorted(dict(load(split="test")).items(), key=lambda row: _position(row[0]))
        tested = {prompt for prompt, _ in heldout}
        train = [row for row in dict(load(split="train")).items() if row[0] not in tested]
        random.Random(wanted.seed).shuffle(train)
    for prompt, answer in train + heldout:
        if parse_number(answer) is None:
            raise ValueError(
                f"gsm8k: the answer must end in #### and a number, got {answer!r} for {prompt!r}"
            )
    return _Source(train, heldout, exact_number, 320, HASHES)


def _open_rs(wanted: _Wanted) -> _Source:
    """knoveleng/open-rs, which has one split: divided by hash."""
    rows = _hub(
        "knoveleng/open-rs", None, fields=("problem", "answer"), split=wanted.split or "train"
    )
    train, heldout = _divide(rows, _prompt_of, wanted.seed, "open-rs")
    return _Source(train, heldout, math_equal, 2048, BOXED, boxed)


def _hub(path: str, config: str | None, *, fields: tuple[str, str], split: str) -> list[Row]:
    """Rows of a data set from the Hub or its local cache. Raises: OSError offline, ValueError for other columns."""
    advice = (
        f'give a local file as the task instead, such as {HUB_IDS[path]}.jsonl, with the fields "{fields[0]}" and '
        f'"{fields[1]}" on each line'
    )
    rows = hub_rows(path, config, fields=fields, split=split, advice=advice)
    return [(prompt, _final(answer)) for prompt, answer in rows]


def hub_rows(
    path: str, config: str | None, *, fields: tuple[str, str], split: str, advice: str
) -> list[Row]:
    """Two columns of a data set from the Hub or its local cache.

    Args:
        path: of the data set on the Hub.
        config: its configuration; None for the only one.
        fields: of the problem and of the answer.
        split: of the data set.
        advice: what to do where it is out of reach.

    Raises: OSError, with advice, where it can't be had; ValueError for other columns, or what is no text.
    """
    import datasets

    try:
        rows = datasets.load_dataset(path, config, split=split)
    except (ConnectionError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"{path} can't be had from the Hugging Face Hub ({reason}): {advice}"
        ) from error
    missing = [field for field in fields if field not in rows.column_names]
    if missing:
        raise ValueError(
            f"{path} must have the column {missing[0]!r}, got {', '.join(rows.column_names)}"
        )
    return [
        texts_of(row, f"{path}, row {n}", fields[:1], fields[1]) for n, row in enumerate(rows, 1)
    ]


def _file(path: Path, wanted: _Wanted) -> _Source:
    """A file's problems: exact numbers where all its answers are plain numbers, else math-verify."""
    rows = read_jsonl(path)
    train, heldout = _divide(rows, _prompt_of, wanted.seed, str(path))
    numeric = all(parse_number(answer) is not None for _, answer in rows)
    reward, own_text = (exact_number, str) if numeric else (math_equal, boxed)
    return _Source(train, heldout, reward, 320, own_text=own_text)


def read_jsonl(path: str | Path) -> list[Row]:
    """Read (prompt, answer) from each line of a file; empty lines are skipped.

    A line is a JSON object with "prompt" (or "problem", "question") and "answer", a text or a number; of an answer
    with "####" in it only what follows counts, as in GSM8K.

    Raises: FileNotFoundError; ValueError with the file, the line and the field.
    """
    rows = []
    for where, row in json_lines(path, "with a prompt and an answer"):
        prompt, answer = texts_of(row, where, PROMPT_FIELDS, "answer")
        if not _final(answer):
            raise ValueError(_no_answer(where, "answer", answer))
        rows.append((prompt, _final(answer)))
    return rows


def json_lines(path: str | Path, expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file that has one a line, each with its place; empty lines are skipped.

    Raises: FileNotFoundError; ValueError with the file and the line, and with what was expected of an object.
    """
    path, empty = Path(path), True
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file; expected one JSON object a line, {expected}"
        )
    # of bytes: a text may hold other line ends
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            where, empty = f"{path}, line {number}", False
            yield where, _object(line, where, expected)
    if empty:
        raise ValueError(f"{path} is empty; expected one JSON object a line, {expected}")


def _object(line: bytes, where: str, expected: str) -> dict[str, Any]:
    """One line of a file."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    # a number of thousands of digits, or thousands of brackets
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON that can be read: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: must be a JSON object {expected}, got {type(row).__name__}")
    return row


def texts_of(row: dict[str, Any], where: str, prompts: Sequence[str], answer: str) -> Row:
    """The prompt, from the first field of these that there is, and the answer of one row.

    Args:
        row: of a data set or a file.
        where: it stands, for messages.
        prompts: names that the problem may have.
        answer: the name of the answer.

    Raises: ValueError, with the place and the field, for what is missing or no text.
    """
    field = next((field for field in prompts if field in row), None)
    names = ", ".join(row) or "none"
    if field is None:
        others = f" (or {', '.join(map(repr, prompts[1:]))})" if prompts[1:] else ""
        raise ValueError(
            f"{where}: field {prompts[0]!r}{others} is missing, the fields are {names}"
        )
    if answer not in row:
        raise ValueError(f"{where}: field {answer!r} is missing, the fields are {names}")
    prompt, right = row[field], row[answer]
    if not _is_text(prompt):
        raise ValueError(
            f"{where}: field {field!r} must be a text that is not empty, got {prompt!r}"
        )
    if isinstance(right, int | float) and not isinstance(right, bool) and math.isfinite(right):
        right = str(right)
    if not _is_text(right):
        raise ValueError(_no_answer(where, answer, right))
    return prompt.strip(), right.strip()


def _no_answer(where: str, field: str, got: Any) -> str:
    return f"{where}: field {field!r} must be a text that is not empty, or a number, got {got!r}"


def _is_text(value: object) -> bool:
    """Whether it is a text, not empty, without half of a surrogate pair, which a data set can't hold."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and not any("\ud800" <= c <= "\udfff" for c in value)
    )


def _final(answer: str) -> str:
    """What follows the last "####", or all of it."""
    return answer.rpartition("####")[2].strip()


TASKS: dict[str, Callable[[_Wanted], _Source]] = {
    "arithmetic": _arithmetic,
    **{
        name: partial(_arithmetic_trap, wrong=wrong, passed=passed)
        for name, (wrong, passed) in TRAPS.items()
    },
    "sums": partial(_sums, terms=2, ending="Reply with the number only.", max_new_tokens=16),
    "sums-steps": partial(_sums, terms=3, ending="Show each step.", max_new_tokens=64),
    "gsm8k": _gsm8k,
    "open-rs": _open_rs,
}
