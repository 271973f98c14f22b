"""The evaluation of the paper's Table 2, on local files in the data sets' own formats."""

import json
import math

import pytest

from minigrpo.paper import TABLE2_AVERAGES

pytest.importorskip("transformers")

import datasets

from minigrpo.llm.cli import main as llm
from minigrpo.llm.table2 import (
    BENCHMARKS,
    average,
    evaluate_benchmarks,
    last_box,
    load_benchmark,
    table2_text,
)

# One line as it stands in each data set; what is asked, and what is right.
LINES = {
    "aime24": ({"id": 60, "problem": "7+18-4=", "solution": "…", "answer": "21", "year": "2024"}, "21"),
    "math500": ({"problem": "7-3+2=", "solution": "…", "answer": "\\frac{12}{2}", "level": 2}, "\\frac{12}{2}"),
    "amc23": ({"problem": "9+9-8=", "answer": 10.0}, "10.0"),
    "minerva": ({"problem": "11+2-3=", "solution": "As $11+2=13$, it is $\\boxed{{10}}$."}, "{10}"),
    "olympiadbench": ({"question": "15-4=", "answer": "$11$"}, "$11$"),
}


@pytest.fixture
def folder(tmp_path):
    for name, (line, _) in LINES.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", BENCHMARKS)
def test_local_files_are_read_by_their_own_fields(folder, name):
    line, answer = LINES[name]
    assert load_benchmark(name, folder) == [(line[BENCHMARKS[name].problem], answer)]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_hub_is_read_by_the_same_fields(monkeypatch, name):
    line, answer = LINES[name]

    def load_dataset(hub_id, config, split):
        assert (hub_id, split) == (BENCHMARKS[name].hub_id, BENCHMARKS[name].split)
        return datasets.Dataset.from_list([line])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_benchmark(name) == [(line[BENCHMARKS[name].problem], answer)]


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    def load_dataset(hub_id, config, split):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(OSError, match=r"aime_2024 can't be had from the Hugging Face Hub \(no route\): give a folder"):
        load_benchmark("aime24")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "line 1: not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("3", "line 1: must be a JSON object as in knoveleng/AMC-23, got int"),
        ('{"problem": "1+1="}', "line 1: field 'answer' is missing, the fields are problem"),
        ('{"problem": " ", "answer": "2"}', "line 1: field 'problem' must be a text that is not empty, got ' '"),
        (
            '\n{"problem": "1+1=", "answer": null}',
            "line 2: field 'answer' must be a text that is not empty, or a number, got None",
        ),
        ("", "is empty; expected one JSON object a line, as in knoveleng/AMC-23"),
    ],
)
def test_wrong_lines_are_named(tmp_path, text, sentence):
    (tmp_path / "amc23.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        load_benchmark("amc23", tmp_path)
    assert str(caught.value).endswith(sentence)


def test_lines_are_read_as_those_of_a_task(tmp_path):
    """A byte order mark, another system's line ends, and line ends of Unicode inside a text, as JSON allows them."""
    texts = ["Let x = 1.\u2028Find x.", "one\u2029two", "one\x85two"]
    lines = [json.dumps({"problem": text, "answer": "2"}, ensure_ascii=False) for text in texts]
    (tmp_path / "math500.jsonl").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert load_benchmark("math500", tmp_path) == [(text, "2") for text in texts]


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("$\\boxed{1}$ and $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("\\boxed{", "\\boxed{"),
        ("no box {1}", "no box {1}"),
        ("a}", "a}"),
    ],
)
def test_last_box(text, inside):
    assert last_box(text) == inside


def test_average_by_hand():
    """(0.5 + 0.1)/2, and 1.96·√(0.25/100 + 0.09/900)/2."""
    rows = [{"accuracy": 0.5, "problems": 100}, {"accuracy": 0.1, "problems": 900}]
    found, half = average(rows), 1.959964 * math.sqrt(0.0025 + 0.0001) / 2
    assert found["accuracy"] == pytest.approx(0.3)
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((0.3 - half, 0.3 + half), abs=1e-7)


def test_table_is_empty_where_nothing_was_run():
    lines = [line.split() for line in table2_text([]).splitlines()]
    assert lines[2::2] == [[name] for name in TABLE2_AVERAGES]
    assert [line[-1] for line in lines[3::2]] == [f"{paper:.4f}" for paper in TABLE2_AVERAGES.values()]
    assert "the paper 0.3333 ± 0.0875 0.7660 ± 0.0190" in " ".join(lines[5])


def test_tiny_on_all_five(folder, capsys):
    """`tiny` answers 4+2=6, 13-3=10 and three wrong sums; its line has numbers, the others stay empty."""
    out = folder / "result.json"
    command = ["eval", "--setting", "qwen-base", "--model", "tiny", "--data", str(folder), "--json", str(out)]
    assert llm(["table2", *command, "--system-prompt", "", "--max-new-tokens", "24"]) == 0
    run = json.loads(out.read_text(encoding="utf-8"))
    assert [row["benchmark"] for row in run["rows"]] == list(BENCHMARKS)
    assert {row["problems"] for row in run["rows"]} == {1}
    assert [row["accuracy"] for row in run["rows"]] == [0, 1, 0, 1, 0]
    first = capsys.readouterr().out
    assert llm(["table2", "show", str(out)]) == 0
    assert capsys.readouterr().out == first
    (line,) = [line for line in first.splitlines() if line.startswith("qwen-base")]
    assert line.count("[") == 6
    assert first.count("[") == 6


def test_answers_that_are_not_right_by_themselves_are_named_before_anything_is_sampled(folder):
    """The second benchmark's only answer is a full stop; a model would be needed for the first one's samples."""
    (folder / "math500.jsonl").write_text('{"problem": "1+1=", "answer": "."}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="^benchmark 'math500': 1 of 1 different answers that were checked don't get"):
        evaluate_benchmarks(None, None, names=["aime24", "math500"], folder=folder, max_new_tokens=4)


def test_adapters_are_merged(folder):
    """With an adapter that turns the weights to noise nothing is right any more."""
    import torch
    from peft import LoraConfig, get_peft_model

    from minigrpo.llm.models import load_model

    model = get_peft_model(load_model("tiny").model, LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    model.save_pretrained(folder / "adapter")
    out = folder / "result.json"
    command = ["eval", "--setting", "llama-grpo-0", "--model", "tiny", "--data", str(folder), "--json", str(out)]
    command += ["--system-prompt", "", "--max-new-tokens", "24", "--adapter", str(folder / "adapter")]
    assert llm(["table2", *command]) == 0
    assert {row["accuracy"] for row in json.loads(out.read_text(encoding="utf-8"))["rows"]} == {0.0}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--data", "nowhere"], "aime24.jsonl is not a file; expected one JSON object a line"),
        (["--adapter", "nowhere"], "--adapter must be a folder with adapter_config.json, got nowhere"),
    ],
)
def test_mistakes_are_one_sentence_before_a_model_is_loaded(folder, capsys, more, sentence):
    command = ["eval", "--setting", "qwen-base", "--model", "no/model", "--data", str(folder)]
    assert llm(["table2", *command, "--json", str(folder / "result.json"), *more]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "it must hold a setting and rows"),
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_table_refuses_other_files(tmp_path, capsys, content, reason):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    assert llm(["table2", "show", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"minigrpo llm table2: {path} is no result of eval: {reason}")
