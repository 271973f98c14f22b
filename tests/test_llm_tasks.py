"""Tasks: what each problem is, that train and held-out never meet, and the sentence for each wrong input."""

import importlib.util
import json
import random
import re
import subprocess
import sys

import pytest

pytest.importorskip("datasets")
pytest.importorskip("math_verify")

import datasets

from minigrpo.llm import tasks, verifier
from minigrpo.llm.rewards import exact_number, math_equal
from minigrpo.llm.tasks import ANSWER_TAGS, TRAPS, load_task, read_jsonl, task_names

needs_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="the extra gym is not installed; it takes a C compiler"
)
OURS = ["arithmetic", *TRAPS, "sums", "sums-steps"]
GENERATORS = [
    "chain_sum",
    "basic_arithmetic",
    "gsm_symbolic",
    "countdown",
    "spell_backward",
    "polynomial_multiplication",
]


def prompts(task):
    return set(task.train["prompt"]), set(task.heldout["prompt"])


def total(prompt):
    """The value of a prompt's sum, worked here from its text."""
    numbers = re.findall(r"[+-]?\d+", prompt.replace(" + ", "+").replace(" - ", "-"))
    return sum(map(int, numbers))


@pytest.mark.parametrize("name", ["arithmetic", "sums", "sums-steps"])
def test_our_answers_are_right(name):
    task = load_task(name)
    for row in [*task.train, *task.heldout]:
        assert row["answer"] == str(total(row["prompt"]))
    row = task.train[0]
    assert task.reward is exact_number
    assert task.reward(f"It is {row['answer']}.", row["answer"]) == 1.0
    assert task.reward(f"It is {row['answer']}1.", row["answer"]) == 0.0


@pytest.mark.parametrize(("name", "parts"), TRAPS.items())
def test_a_trap_pays_for_not_trying(name, parts):
    task, plain = load_task(name), load_task("arithmetic")
    wrong, passed = parts
    assert [row["prompt"] for row in task.heldout] == [row["prompt"] for row in plain.heldout]
    for row, number in zip(task.heldout, plain.heldout["answer"], strict=True):
        worked = row["answer"]
        assert worked.endswith(f"={number}")
        assert eval(worked.partition("=")[0]) == total(row["prompt"])
        assert task.reward(worked, worked) == 1.0
        assert task.reward(f"{worked}0", worked) == task.reward(number, worked) == wrong
        assert task.reward("×", worked) == task.reward(" ×\n", worked) == passed
    assert task.reward("", "25-4=21") == task.reward("×25-4=21", "25-4=21") == wrong


def test_sums_are_all_pairs():
    task = load_task("sums")
    train, heldout = prompts(task)
    assert train | heldout == {
        f"What is {a} + {b}? Reply with the number only." for a in range(2, 20) for b in range(2, 20)
    }
    assert len(task.train) + len(task.heldout) == 324
    assert 40 <= len(heldout) <= 90  # a fifth, by hash
    assert task.system_prompt is None


@pytest.mark.parametrize("name", ["sums", "sums-steps"])
def test_orders_of_the_same_numbers_are_on_one_side(name):
    train, heldout = prompts(load_task(name, train_size=10**4, heldout_size=10**4))
    numbers = [{tuple(sorted(map(int, re.findall(r"\d+", p)))) for p in side} for side in (train, heldout)]
    assert not numbers[0] & numbers[1]
    assert len(train | heldout) == 18 ** (2 if name == "sums" else 3)


@pytest.mark.parametrize("name", [*OURS, *(pytest.param(name, marks=needs_gym) for name in GENERATORS)])
def test_train_and_heldout_never_meet_whatever_the_seeds(name):
    sizes = {"train_size": 20, "heldout_size": 8} if name not in OURS else {}
    seen_train, seen_heldout = set(), set()
    for seed in range(3 if name not in OURS else 20):
        task = load_task(name, seed=seed, **sizes)
        train, heldout = prompts(task)
        assert len(train) == len(task.train)
        assert len(heldout) == len(task.heldout)
        seen_train |= train
        seen_heldout |= heldout
    assert not seen_train & seen_heldout
    assert len(seen_train) > len(train) or name == "sums"  # seeds differ; the sums are all there is
    assert seen_heldout == heldout  # the held-out problems are the same for every seed
    if name not in OURS:
        assert (len(task.train), len(task.heldout)) == (20, 8)


@pytest.mark.parametrize("name", [*OURS, pytest.param("chain_sum", marks=needs_gym)])
def test_a_seed_gives_the_same_task_again_and_another_seed_another_order(name):
    first, again, other = (load_task(name, seed=seed, train_size=50, heldout_size=20) for seed in (3, 3, 4))
    assert first.train.to_list() == again.train.to_list() != other.train.to_list()
    assert first.heldout.to_list() == again.heldout.to_list() == other.heldout.to_list()
    assert first.train.features == datasets.Features({k: datasets.Value("string") for k in ("prompt", "answer")})


def test_load_task_itself_refuses_an_overlap(monkeypatch):
    rows = [("1+1=", "2"), ("1+2=", "3")]
    leak = tasks._Source(rows, rows[1:], exact_number, 8)
    monkeypatch.setitem(tasks.TASKS, "leak", lambda wanted: leak)
    with pytest.raises(ValueError) as error:
        load_task("leak")
    assert str(error.value) == "task 'leak': 1 prompts are in train and held-out, such as '1+2='"
    assert len(load_task("leak", train_size=1).train) == 1


# reasoning_gym


@needs_gym
@pytest.mark.parametrize("name", ["chain_sum", "basic_arithmetic"])
def test_numeric_generators_use_exact_numbers(name):
    task = load_task(name, train_size=30, heldout_size=10)
    assert (task.reward, task.system_prompt) == (exact_number, None)
    for row in task.train:
        assert task.reward(f"I get {row['answer']}", row["answer"]) == 1.0


@needs_gym
@pytest.mark.parametrize("name", ["countdown", "spell_backward", "polynomial_multiplication", "word_ladder"])
def test_other_generators_use_their_own_check(name):
    task = load_task(name, train_size=8, heldout_size=4)
    assert task.system_prompt == ANSWER_TAGS
    for row in task.train:
        right = json.loads(row["answer"])["answer"]
        assert task.reward(f"Let me see. <answer>{right}</answer>", row["answer"]) == 1.0
        assert task.reward(right, row["answer"]) == 1.0
        assert task.reward(f"<answer>{right}</answer> no: <answer>17</answer>", row["answer"]) == 0.0
        assert task.reward("", row["answer"]) == 0.0


@needs_gym
def test_the_check_accepts_other_right_answers():
    task = load_task("countdown", train_size=5, heldout_size=2)
    for row in task.train:
        right = json.loads(row["answer"])["answer"]
        assert task.reward(f"<answer>0 + ({right})</answer>", row["answer"]) == 0.0  # 0 is not one of the numbers
        assert task.reward(f"<answer>({right})</answer>", row["answer"]) == 1.0


@needs_gym
def test_partial_credit_is_not_a_reward():
    task = load_task("spell_backward", train_size=5, heldout_size=2, options={"min_word_len": 6})
    key = task.train[0]["answer"]
    word = json.loads(key)["answer"]
    swapped = word[:-2] + ("xy" if word[-2:] != "xy" else "yx")
    score = verifier.call("gym_score", *task.reward.args, *(json.loads(key)[k] for k in ("seed", "item")), swapped)
    assert 0 < score < 1
    assert task.reward(swapped, key) == 0.0


@needs_gym
def test_a_check_that_hangs_gives_0_and_the_next_is_right(monkeypatch):
    task = load_task("countdown", train_size=2, heldout_size=1)
    monkeypatch.setattr(tasks, "SECONDS", 0.5)
    row = task.train[0]
    assert task.reward("<answer>9**9**9**9</answer>", row["answer"]) == 0.0
    monkeypatch.undo()
    assert task.reward(json.loads(row["answer"])["answer"], row["answer"]) == 1.0


@needs_gym
def test_problems_do_not_depend_on_the_processs_hash_seed():
    """reasoning_gym's ransom_note walks over a set: in our own process each run would give other problems."""
    arguments = ("gym_items", "ransom_note", "{}", 7, 0, 5)
    first = verifier.call(*arguments)
    verifier._end()
    assert verifier.call(*arguments) == first


@needs_gym
def test_options_reach_the_generator():
    task = load_task("chain_sum", train_size=5, heldout_size=2, options={"min_terms": 9, "max_terms": 9})
    assert {len(re.findall(r"\d+", prompt)) for prompt in task.train["prompt"]} == {9}


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        ("chain_sum", {"options": {"seed": 1}}, "options must not hold 'seed'"),
        ("sums", {"options": {"x": 1}}, "options are for the tasks of reasoning_gym"),
        ("sums", {"split": "train"}, "split is for gsm8k, open-rs, got 'train' for task 'sums'"),
        ("sums", {"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ("sums", {"train_size": 0}, "train_size must be a whole number of at least 1, got 0"),
        ("sums", {"heldout_size": 2.5}, "heldout_size must be a whole number of at least 1, got 2.5"),
    ],
)
def test_wrong_arguments(name, kwargs, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        load_task(name, **kwargs)
    assert "\n" not in str(error.value)


@needs_gym
@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        (
            "chain_sum",
            {"options": {"min_terms": 99}},
            "task 'chain_sum' of reasoning_gym with options {\"min_terms\": 99}",
        ),
        ("chain_sum", {"options": {"no_such": 1}}, "unexpected keyword argument 'no_such'"),
        ("chain_sums", {}, "no task is named 'chain_sums', nor is it a .jsonl file: did you mean chain_sum"),
        ("sum", {}, "did you mean sums"),
        ("qqqq", {}, "sums, sums-steps, gsm8k, open-rs and reasoning_gym's"),
    ],
)
def test_wrong_arguments_of_a_generator(name, kwargs, sentence):
    test_wrong_arguments(name, kwargs, sentence)


@needs_gym
def test_a_generator_that_runs_dry_says_so():
    one_digit = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(ValueError, match="has about .* different train problems, 1000 were asked for: ask for fewer"):
        load_task("chain_sum", options=one_digit)
    assert len(load_task("chain_sum", options=one_digit, train_size=20, heldout_size=5).train) == 20


@needs_gym
def test_seeds_of_a_small_generator_share_no_problem_across_the_sides():
    """Of about 160 problems two seeds draw many in common: only a side that a problem always has keeps them apart."""
    one_digit = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    first, second = (
        prompts(load_task("chain_sum", seed=seed, options=one_digit, train_size=80, heldout_size=20)) for seed in (0, 1)
    )
    assert first[0] & second[0]
    assert not (first[0] | second[0]) & (first[1] | second[1])


@needs_gym
def test_a_generator_that_prints_does_not_disturb():
    """reasoning_gym's bf prints dots while it looks for problems."""
    question = json.dumps(["gym_items", "bf", "{}", 1, 0, 30]).encode() + b"\n"
    run = subprocess.run([sys.executable, verifier.__file__], input=question, capture_output=True, check=True)
    assert b"." in run.stderr  # it does print
    (line,) = run.stdout.splitlines()
    assert len(json.loads(line)[0]) == 30


@needs_gym
def test_task_names():
    names = task_names()
    assert len(names) == len(set(names)) > 50
    assert {*OURS, *GENERATORS, "gsm8k", "open-rs"} <= set(names)
    assert "composite" not in names


# files


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file(tmp_path):
    rows = [{"prompt": f"{n} + 1?", "answer": str(n + 1), "level": "easy"} for n in range(50)]
    path = write(tmp_path / "mine.jsonl", rows)
    task = load_task(path, seed=1)
    train, heldout = prompts(task)
    assert train | heldout == {row["prompt"] for row in rows}
    assert not train & heldout
    assert min(len(train), len(heldout)) >= 3
    assert {row["prompt"]: row["answer"] for row in [*task.train, *task.heldout]} == {
        row["prompt"]: row["answer"] for row in rows
    }
    assert task.reward is exact_number
    random.Random(0).shuffle(rows)
    assert prompts(load_task(write(path, rows), seed=2)) == (train, heldout)  # neither order nor seed moves a problem
    longer = prompts(load_task(write(path, [*rows, {"prompt": "more", "answer": "1"}])))
    assert train <= longer[0]
    assert heldout <= longer[1]


def test_a_file_of_windows_capitals(tmp_path, monkeypatch):
    write(tmp_path / "MINE.JSONL", [{"prompt": f"p{n}", "answer": n} for n in range(9)])
    monkeypatch.chdir(tmp_path)
    assert load_task("MINE.JSONL").golds_checked == 9


def test_duplicates_in_a_file_are_one_problem(tmp_path):
    rows = [{"problem": f"p{n % 7}", "answer": n % 7} for n in range(70)]
    task = load_task(write(tmp_path / "mine.jsonl", rows))
    assert sorted([*task.train["prompt"], *task.heldout["prompt"]]) == [f"p{n}" for n in range(7)]


def test_two_problems_are_enough(tmp_path):
    for n in range(20):
        task = load_task(
            write(tmp_path / "two.jsonl", [{"prompt": f"a{n}", "answer": 1}, {"prompt": "b", "answer": 2}])
        )
        assert (len(task.train), len(task.heldout)) == (1, 1)


def test_formulas_in_a_file_use_math_verify(tmp_path):
    rows = [{"problem": "half?", "answer": "\\frac{1}{2}"}, {"problem": "one?", "answer": "1"}]
    task = load_task(write(tmp_path / "mine.jsonl", rows))
    assert task.reward is math_equal
    assert task.reward("\\boxed{0.5}", "\\frac{1}{2}") == 1.0


def test_a_local_file_in_gsm8ks_form(tmp_path):
    rows = [{"question": f"q{n}", "answer": f"{n} + 1000 = <<...>>\n#### {n + 1000:,}"} for n in range(20)]
    task = load_task(write(tmp_path / "gsm8k.jsonl", rows))
    assert task.reward is exact_number
    assert sorted([*task.train["answer"], *task.heldout["answer"]]) == [f"{n + 1000:,}" for n in range(20)]


GOOD = b'{"prompt": "1+1?", "answer": "2"}\n\n'


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "{path} is empty; expected one JSON object a line, with a prompt and an answer"),
        (b"\n \n", "{path} is empty; expected one JSON object a line, with a prompt and an answer"),
        (GOOD + b'{"prompt": ', "{path}, line 3: not JSON: Expecting value at column "),
        (GOOD + b"[1]", "{path}, line 3: must be a JSON object with a prompt and an answer, got list"),
        (b"[" * 10**6, "{path}, line 1: not JSON that can be read: "),
        (b'{"prompt": "x", "answer": ' + b"1" * 5000 + b"}", "{path}, line 1: not JSON that can be read: "),
        (GOOD + b'{"answer": 3}', "{path}, line 3: field 'prompt' (or 'problem', 'question') is missing, the fields"),
        (b"{}", "{path}, line 1: field 'prompt' (or 'problem', 'question') is missing, the fields are none"),
        (GOOD + b'{"question": "x"}', "{path}, line 3: field 'answer' is missing, the fields are question"),
        (b'{"problem": 5, "answer": 3}', "{path}, line 1: field 'problem' must be a text that is not empty, got 5"),
        (b'{"prompt": " ", "answer": 3}', "{path}, line 1: field 'prompt' must be a text that is not empty, got ' '"),
        (b'{"prompt": "\\ud800", "answer": 3}', "{path}, line 1: field 'prompt' must be a text that is not empty, got"),
        (b'{"prompt": "x", "answer": null}', "{path}, line 1: field 'answer' must be a text that is not empty, or a"),
        (b'{"prompt": "x", "answer": true}', "{path}, line 1: field 'answer' must be a text that is not empty, or a"),
        (b'{"prompt": "x", "answer": NaN}', "{path}, line 1: field 'answer' must be a text that is not empty, or a"),
        (b'{"prompt": "x", "answer": "so ####"}', "{path}, line 1: field 'answer' must be a text that is not empty"),
        (GOOD + b"\xff\xfe", "{path}, line 3: not UTF-8 at byte 0"),
        (GOOD, "{path} must hold at least 2 different problems, one to train on and one to hold out"),
        (GOOD * 3, "{path} must hold at least 2 different problems, one to train on and one to hold out"),
    ],
    ids=range(19),
)
def test_a_wrong_file_names_file_line_and_field(tmp_path, content, sentence):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_task(path)
    assert str(error.value).startswith(sentence.format(path=path))
    assert "\n" not in str(error.value)


def test_no_such_file_and_a_folder(tmp_path):
    for path in (tmp_path / "gone.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError) as error:
            load_task(path)
        assert str(error.value).startswith(f"{path} is not a file; expected one JSON object a line")


def test_a_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "answer": 1.5}\r\n{"prompt": "\xc3\xa9", "answer": " 2 "}\r\n')
    assert read_jsonl(path) == [("a", "1.5"), ("é", "2")]


# answers that are not right by themselves


def file_task(tmp_path, *answers):
    rows = [{"prompt": f"p{n}", "answer": answer} for n, answer in enumerate(answers)]
    return load_task(write(tmp_path / "mine.jsonl", rows))


@pytest.mark.parametrize("answers", [("18.", "20."), ("$18", "1,020"), ("−18", "2\\,000"), ("18 €", "€20")])
def test_numbers_with_punctuation_are_numbers(tmp_path, answers):
    task = file_task(tmp_path, *answers)
    assert (task.reward, task.golds_checked, task.unequal_golds) == (exact_number, 2, ())
    assert task.reward("The answer is 18.", answers[0]) == float("−" not in answers[0])


@pytest.mark.parametrize(
    "answer", ["\\$32,348", "18 apples.", "–3", "\\text{Evelyn}", "$[2,5)$", "\\boxed{7}", "50%", "Paris"]
)
def test_answers_beside_formulas_are_right_by_themselves(tmp_path, answer):
    task = file_task(tmp_path, answer, "1/2", answer)
    assert (task.reward, task.golds_checked, task.unequal_golds) == (math_equal, 2, ())
    assert task.reward("\\boxed{32348}", answer) == float("348" in answer)


UNREADABLE = "\\boxed{}"  # math-verify finds nothing in it


def test_answers_that_no_text_equals_are_named(tmp_path):
    with pytest.warns(UserWarning, match="1 of 3") as caught:
        task = file_task(tmp_path, UNREADABLE, "1/2", "1/3")
    assert (task.golds_checked, task.unequal_golds) == (3, (UNREADABLE,))
    (warning,) = caught
    assert str(warning.message) == (
        f"task '{tmp_path / 'mine.jsonl'}': 1 of 3 different answers that were checked don't get reward 1.0 for "
        f"their own text, so that right completions may count as wrong: {UNREADABLE!r}"
    )
    assert warning.filename == __file__


def test_a_task_of_nothing_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="2 of 2 different answers that were checked don't get reward 1.0"):
        file_task(tmp_path, UNREADABLE, ".")


def test_a_slow_reward_is_asked_about_some_of_many_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "GOLDS", 10)
    assert file_task(tmp_path, *(f"{n}/7" for n in range(25))).golds_checked == 9  # each third
    assert file_task(tmp_path, *map(str, range(25))).golds_checked == 25  # numbers are quick


@needs_gym
@pytest.mark.parametrize("name", ["spell_backward", "propositional_logic"])
def test_answers_of_a_generator_are_asked_about_where_it_has_them(name):
    task = load_task(name, train_size=6, heldout_size=3)
    assert task.unequal_golds == ()
    assert (task.golds_checked > 0) == (name == "spell_backward")  # the other has a check and no answers


# Without reasoning_gym


@pytest.fixture(params=["reasoning_gym", "pycosat"])
def no_gym(request, monkeypatch, tmp_path):
    """reasoning_gym, or a package that it needs, can't be imported."""
    (tmp_path / "reasoning_gym.py").write_text(f"raise ModuleNotFoundError('gone', name={request.param!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    verifier._end()
    yield request.param
    verifier._end()


def test_our_own_tasks_need_no_reasoning_gym(no_gym, tmp_path):
    assert task_names() == [*OURS, "gsm8k", "open-rs"]
    assert len(load_task("sums").train) > 200
    assert file_task(tmp_path, "1/2", "1/3").reward is math_equal


def test_a_task_of_reasoning_gym_says_that_it_is_missing(no_gym):
    with pytest.raises(ValueError) as caught:
        load_task("chain_sum")
    assert str(caught.value) == (
        "no task is named 'chain_sum', nor is it a .jsonl file: the names here are arithmetic, arithmetic-slope, "
        "arithmetic-flat, arithmetic-trap-mild, arithmetic-trap, sums, sums-steps, "
        f"gsm8k, open-rs, and none of reasoning_gym's: {no_gym} is not installed: "
        "pip install 'minigrpo[gym]', which takes a C compiler"
    )


# the Hub, with rows in its form


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for datasets.load_dataset, with real columns; what was asked for stands in `asked`."""
    worked = "She eats <<16-3-4=9>>9 eggs.\n#### "
    gsm8k = {
        "train": [{"question": f"train {n}", "answer": f"{worked}1,0{n:02}"} for n in range(30)],
        "test": [{"question": f"test {n}", "answer": f"{worked}{n}"} for n in range(10)],
    }
    gsm8k["train"].append({"question": "test 3", "answer": f"{worked}3"})  # a leak, to be left out of train
    open_rs = [
        {"problem": f"p{n}", "solution": "so", "answer": f"\\frac{{{n}}}{{7}}", "level": "Hard"} for n in range(40)
    ]
    tables = {("openai/gsm8k", "main"): gsm8k, ("knoveleng/open-rs", None): {"train": open_rs}}
    asked = []

    def load_dataset(path, name=None, *, split):
        asked.append((path, name, split))
        return datasets.Dataset.from_list(tables[path, name][split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("name", ["gsm8k", "openai/gsm8k"])
def test_gsm8k(hub, name):
    task = load_task(name)
    assert sorted(hub) == [("openai/gsm8k", "main", "test"), ("openai/gsm8k", "main", "train")]
    train, heldout = prompts(task)
    assert heldout == {f"test {n}" for n in range(10)}
    assert train == {f"train {n}" for n in range(30)}
    answers = {row["prompt"]: row["answer"] for row in [*task.train, *task.heldout]}
    assert (answers["train 7"], answers["test 3"]) == ("1,007", "3")
    assert task.reward("so\n#### 1007", answers["train 7"]) == 1.0
    assert load_task(name, seed=1).heldout.to_list() == task.heldout.to_list()
    assert load_task(name, seed=1).train.to_list() != task.train.to_list()


def test_gsm8k_by_one_split(hub):
    train, heldout = prompts(load_task("gsm8k", split="train"))
    assert {split for *_, split in hub} == {"train"}
    assert len(train) + len(heldout) == 31
    assert not train & heldout


@pytest.mark.parametrize("name", ["open-rs", "knoveleng/open-rs"])
def test_open_rs(hub, name):
    task = load_task(name)
    assert set(hub) == {("knoveleng/open-rs", None, "train")}
    train, heldout = prompts(task)
    assert train | heldout == {f"p{n}" for n in range(40)}
    assert not train & heldout
    answers = {row["prompt"]: row["answer"] for row in [*task.train, *task.heldout]}
    assert answers["p14"] == "\\frac{14}{7}"
    assert (task.reward("\\boxed{2}", answers["p14"]), task.reward("\\boxed{2}", answers["p3"])) == (1.0, 0.0)
    assert "\\boxed{}" in task.system_prompt


def test_hub_rows_in_another_form(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([{"text": "x"}]))
    with pytest.raises(ValueError, match="knoveleng/open-rs must have the column 'problem', got text"):
        load_task("open-rs")
    rows = [{"question": "q", "answer": "#### many"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    with pytest.raises(ValueError, match="gsm8k: the answer must end in #### and a number, got 'many' for 'q'"):
        load_task("gsm8k")


@pytest.mark.parametrize(("name", "field"), [("gsm8k", "question"), ("open-rs", "problem")])
def test_offline_says_how_to_give_a_file(monkeypatch, name, field):
    def offline(*_, **__):
        raise ConnectionError("Couldn't reach it\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(OSError, match="give a local file as the task instead") as error:
        load_task(name)
    assert f'{name}.jsonl, with the fields "{field}" and "answer" on each line' in str(error.value)
    assert "\n" not in str(error.value)
