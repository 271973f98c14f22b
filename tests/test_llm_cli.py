"""`python -m minigrpo llm`: what a user types, what comes back, and what a mistake is told."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from minigrpo.cli import main
from minigrpo.llm import runs, training
from minigrpo.llm.cli import build_parser
from minigrpo.llm.models import TINY, load_model
from minigrpo.llm.runs import read_metrics
from minigrpo.llm.settings import PRESETS, Settings
from minigrpo.llm.tasks import load_task

QUICK = (
    "--updates 2 --prompts 2 --group-size 4 --max-new-tokens 10 --eval-size 10 --eval-every 1 --train-size 20".split()
)


def llm(*arguments):
    return main(["llm", *map(str, arguments)])


def test_train_overlap_and_plot(tmp_path, capsys):
    run = tmp_path / "run"
    assert llm("train", *QUICK, "--objective", "lambda_grpo", "--out", run, "--json", tmp_path / "train.json") == 0
    settings = json.loads((run / "manifest.json").read_text())["settings"]
    assert settings["objective"] == "lambda_grpo"
    assert settings["learning_rate"] == PRESETS["cpu"].settings.learning_rate
    assert json.loads((tmp_path / "train.json").read_text())["finished"]
    assert "held-out greedy accuracy" in capsys.readouterr().out
    assert llm("overlap", run, "--json", tmp_path / "overlap.json", "--out", tmp_path / "overlap.png") == 0
    assert (tmp_path / "overlap.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "overlap.json").read_text())["rows"]
    assert [row["update"] for row in rows] == [0, 1, 2]
    assert llm("plot", run, "--out", tmp_path / "plot.png") == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_eval(tmp_path, capsys):
    assert llm("eval", "--eval-size", 30, "--json", tmp_path / "eval.json") == 0
    result = json.loads((tmp_path / "eval.json").read_text())
    assert {"accuracy", "ci_low", "ci_high", "problems"} <= set(result)
    assert result["problems"] == 30
    assert f"{result['accuracy']:.3f}" in capsys.readouterr().out
    assert llm("eval", "--eval-size", 10, "--samples", 2, "--json", tmp_path / "eval.json") == 0
    result = json.loads((tmp_path / "eval.json").read_text())
    assert 0 < result["pass@2_ci_low"] < result["pass@2"] < result["pass@2_ci_high"] <= 1
    assert f"temperature 1, 2 a problem: accuracy {result['accuracy']:.3f}" in (text := capsys.readouterr().out)
    assert f"pass@2: {result['pass@2']:.3f} [" in text


def test_eval_of_a_run_takes_its_settings_and_weights(tmp_path, capsys):
    run, lora = tmp_path / "run", ("--lora-rank", 4, "--learning-rate", 0.003)
    assert llm("train", *QUICK, *lora, "--out", run) == 0
    assert llm("eval", "--run", run, "--json", tmp_path / "eval.json") == 0
    result, last = json.loads((tmp_path / "eval.json").read_text()), read_metrics(run)[-1]
    assert result["problems"] == 10
    assert result["accuracy"] == last["eval_accuracy"]
    assert "tiny after 2 updates" in capsys.readouterr().out
    assert llm("eval", "--run", run, "--eval-size", 30, "--samples", 2, "--json", tmp_path / "eval.json") == 0
    assert json.loads((tmp_path / "eval.json").read_text())["problems"] == 30


def test_theorem(tmp_path, capsys):
    assert llm("theorem", "--json", tmp_path / "theorem.json") == 0
    (row,) = json.loads((tmp_path / "theorem.json").read_text())["rows"]
    assert {"case", "loss_gap", "grad_gap"} <= set(row)
    assert "|λ|" in capsys.readouterr().out


def test_compare_skips_what_is_finished(tmp_path, capsys):
    command = ["compare", *QUICK, "--seeds", 1, "--out", tmp_path, "--json", tmp_path / "compare.json"]
    assert llm(*command) == 0
    first = json.loads((tmp_path / "compare.json").read_text())
    assert [row["objective"] for row in first["rows"]] == ["grpo", "lambda_grpo"]
    started = time.monotonic()
    assert llm(*command) == 0
    assert time.monotonic() - started < 1  # no model was even loaded
    assert json.loads((tmp_path / "compare.json").read_text()) == first


def mistake(arguments, capsys):
    """The sentence that a user gets for a mistake: one line, which names the command, and exit status 2."""
    assert llm(*arguments, "--quiet") == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"minigrpo llm {arguments[0]}: ")
    assert errors.count("\n") == 1
    return errors


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", "./no/folder"], "'./no/folder' is neither a folder nor a Hugging Face Hub id"),
        (["--task", "no_such_task"], "no_such_task"),
        (["--task", "no_file.jsonl"], "no_file.jsonl is not a file"),
        (["--group-size", "1"], "group_size must be at least 2, got 1"),
        (["--device", "cuda:9"], "cuda"),
        (["--device", "abacus"], "device must be cpu, cuda, cuda:N or mps, got 'abacus'"),
        (["--max-new-tokens", "500"], "max_new_tokens 500 must fit into the model's context"),
        (["--resume"], "holds no run to resume"),
    ],
)
def test_a_mistake_gets_one_sentence_and_leaves_results_alone(arguments, words, tmp_path, capsys):
    (tmp_path / "result.json").write_text("an earlier result")
    command = ["train", *QUICK, *arguments, "--out", tmp_path / "run", "--json", tmp_path / "result.json"]
    assert words in mistake(command, capsys)
    assert (tmp_path / "result.json").read_text() == "an earlier result"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("command", [["train", "--out", "run"], ["eval"], ["theorem"], ["compare", "--out", "runs"]])
def test_no_gpu_where_one_was_asked_for(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "device 'cuda' needs an NVIDIA GPU, and torch finds none here" in mistake(
        [*command, "--device", "cuda"], capsys
    )
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "1+1="}', "line 2: field 'answer' is missing, the fields are prompt"),
        ('{"text": "1+1=", "answer": 2}', "line 2: field 'prompt' (or 'problem', 'question') is missing"),
        ('{"prompt": "", "answer": 2}', "line 2: field 'prompt' must be a text that is not empty"),
        ("1+1=2", "line 2: not JSON"),
    ],
)
def test_a_file_with_a_wrong_line(line, words, tmp_path, capsys):
    path = tmp_path / "sums.jsonl"
    path.write_text(f'{{"prompt": "2+2=", "answer": 4}}\n{line}\n')
    assert f"{path}, {words}" in mistake(["train", *QUICK, "--task", path, "--out", tmp_path / "run"], capsys)


@pytest.mark.parametrize(("terms", "tokens"), [(59, 120), (500, 1002)])
def test_a_prompt_longer_than_the_context(terms, tokens, tmp_path, capsys):
    """One of fifty: it is found before the first update, and named, whichever side it is on."""
    path, run = tmp_path / "long.jsonl", tmp_path / "run"
    rows = [{"prompt": f"{a}+{b}=", "answer": a + b} for a in range(2, 12) for b in range(2, 7)]
    rows[7] = {"prompt": "+".join("1" * terms) + "=", "answer": terms}
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sizes = ["--train-size", 100, "--eval-size", 50]
    found = mistake(["train", *QUICK, *sizes, "--task", path, "--out", run], capsys)
    task = load_task(path, train_size=100, heldout_size=50)
    side = "training" if rows[7]["prompt"] in task.train["prompt"] else "held-out"
    number = list((task.train if side == "training" else task.heldout)["prompt"]).index(rows[7]["prompt"]) + 1
    assert (
        f"{side} problem {number} ('1+1+1+1+1+1+1+1+1+1+…1+1+1+1+1+1+1+1+1+1='): prompt of {tokens} tokens and "
        "max_new_tokens 10 must fit into the model's context of 128: shorten the prompt or max_new_tokens"
    ) in found
    assert not run.exists()


def test_a_held_out_prompt_longer_than_the_context(tmp_path, capsys):
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "+".join("1" * terms) + "=", "answer": terms} for terms in (70, 80)]  # one is held out
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = mistake(["eval", "--task", path], capsys)
    assert "held-out problem 1 ('1+1+" in found


def test_a_system_prompt_that_the_template_refuses(tmp_path, monkeypatch):
    """tiny's own: the run goes on with the system prompt before the user's, and its manifest says so."""

    def asked(*arguments, **options):
        return dataclasses.replace(load_task(*arguments, **options), system_prompt="2+2=4")

    monkeypatch.setattr(training, "load_task", asked)
    assert llm("train", *QUICK, "--out", tmp_path / "run") == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["found"]["system_prompt"].startswith("the system prompt stands before the user's text")


def test_a_template_that_fails(tmp_path, capsys):
    folder = shutil.copytree(TINY, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    for command in (["train", *QUICK, "--out", tmp_path / "run"], ["eval"], ["theorem"]):
        found = mistake([*command, "--model", folder], capsys)
        assert f"the chat template of model '{folder}' can't be used: no" in found
    assert not (tmp_path / "run").exists()


def test_what_was_found_is_said_unless_asked_to_be_quiet(tmp_path, capsys):
    """And not in a notebook, which has its bar; the manifest has it always."""
    assert llm("train", *QUICK, "--quiet", "--out", tmp_path / "silent") == 0
    assert capsys.readouterr().err == ""
    assert training.train(Settings(updates=1, eval_size=4), tmp_path / "notebook", progress=True)
    assert "a completion ends at" not in capsys.readouterr().err
    assert llm("train", *QUICK, "--out", tmp_path / "shown") == 0
    shown = capsys.readouterr().err
    assert llm("eval", "--eval-size", 10, "--json", tmp_path / "eval.json") == 0
    evaluated = capsys.readouterr().err
    for text in (shown, evaluated):
        assert "model: minigrpo/llm/tiny, 0.794 million parameters, cpu, float32\n" in text
        assert "a completion ends at <eos> (1), or after" in text
    assert "updates: padded or shared or packed, whichever is cheapest\n" in shown
    facts = [json.loads((tmp_path / run / "manifest.json").read_text())["found"] for run in ("silent", "shown")]
    assert facts[0] == facts[1]
    assert facts[0]["ends"] == [{"id": 1, "token": "<eos>"}]
    assert facts[0]["context"] == 128


@pytest.mark.filterwarnings("error::FutureWarning")
def test_no_name_that_is_on_its_way_out(tmp_path):
    for k, options in enumerate([[], ["--lora-rank", 2, "--gradient-checkpointing"]]):
        assert llm("train", *QUICK, *options, "--out", tmp_path / str(k)) == 0
    assert llm("eval", "--eval-size", 4) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
        (lambda folder: edit(folder / "tokenizer_config.json", eos_token=None, pad_token=None), "has no eos token"),
        (lambda folder: cut(folder / "model.safetensors"), "can't be read"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "only pickled weights"),
    ],
    ids=["chat template", "eos token", "cut weights", "pickle"],
)
def test_a_model_that_can_t_be_used(change, words, tmp_path, capsys):
    folder = shutil.copytree(TINY, tmp_path / "model")
    change(folder)
    for command in (["train", *QUICK, "--out", tmp_path / "run"], ["eval"], ["theorem"]):
        assert words in mistake([*command, "--model", folder], capsys)


def test_a_model_without_a_pad_token_pads_with_eos(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    edit(folder / "tokenizer_config.json", pad_token=None)
    assert llm("eval", "--model", folder, "--eval-size", 30, "--json", tmp_path / "padded.json") == 0
    assert llm("eval", "--eval-size", 30, "--json", tmp_path / "tiny.json") == 0
    assert (tmp_path / "padded.json").read_text() == (tmp_path / "tiny.json").read_text()


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.fixture
def run(tmp_path):
    assert llm("train", *QUICK, "--out", tmp_path / "run") == 0
    return tmp_path / "run"


def test_a_run_is_never_overwritten(run, capsys):
    before = contents(run)
    assert "holds a run already" in mistake(["train", *QUICK, "--out", run], capsys)
    file = run / "manifest.json"
    assert f"{file} is a file, expected a folder" in mistake(["train", *QUICK, "--out", file], capsys)
    other = ["train", *QUICK, "--objective", "prm", "--resume", "--out", run]
    assert "was made with other settings: objective 'grpo', not 'prm'" in mistake(other, capsys)
    cut(run / "checkpoint.safetensors")
    assert "can't be read, it may be cut short" in mistake(["train", *QUICK, "--resume", "--out", run], capsys)
    assert "can't be read, it may be cut short" in mistake(["eval", "--run", run], capsys)
    after = contents(run)
    checkpoint = Path("checkpoint.safetensors")
    assert after == before | {checkpoint: after[checkpoint]}


def test_no_space_left_keeps_the_checkpoint_and_the_run_goes_on(tmp_path, capsys):
    """A limit on the size of files stands for the full disk: metrics.jsonl is cut in the middle of a line."""
    resource = pytest.importorskip("resource", reason="Windows sets no limits")
    quick = [*QUICK, "--updates", 8, "--save-every", 1]
    whole, full = tmp_path / "whole", tmp_path / "full"
    assert llm("train", *quick, "--quiet", "--out", whole) == 0
    path = full / "metrics.jsonl"

    original, seen = runs._append, []

    def last_line_is_cut(path, row):
        seen.append(row)
        if len(seen) < 10:
            return original(path, row)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, limits[1]))
        try:
            original(path, row)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_append", last_line_is_cut)
        found = mistake(["train", *quick, "--out", full], capsys)
    assert f"{path} can't be written: File too large; the last checkpoint is whole" in found
    assert not path.read_text().endswith("\n")
    assert llm("train", *quick, "--resume", "--out", full) == 0
    told = ("update", "reward", "loss", "eval_accuracy")
    numbers = [[[row.get(name) for name in told] for row in read_metrics(run)] for run in (whole, full)]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) == 9


def test_no_space_left_for_a_checkpoint(run, tmp_path, capsys):
    """The one before stays, whole."""
    resource = pytest.importorskip("resource", reason="Windows sets no limits")
    before = contents(run)[Path("checkpoint.safetensors")]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        found = mistake(["train", *QUICK, "--out", tmp_path / "other"], capsys)
        edit(
            run / "manifest.json", settings=json.loads((run / "manifest.json").read_text())["settings"] | {"updates": 4}
        )
        again = mistake(["train", *QUICK, "--updates", 4, "--resume", "--out", run], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{tmp_path / 'other' / 'checkpoint.safetensors'} can't be written" in found
    assert f"{run / 'checkpoint.safetensors'} can't be written" in again
    assert contents(run)[Path("checkpoint.safetensors")] == before
    assert not (run / ".checkpoint.safetensors").exists()


def test_numbers_that_are_none_stop_the_run(tmp_path, capsys):
    loaded, folder = load_model("tiny"), shutil.copytree(TINY, tmp_path / "model")
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(float("nan"))
    loaded.model.save_pretrained(folder)
    capsys.readouterr()
    found = mistake(["train", *QUICK, "--model", folder, "--out", tmp_path / "run"], capsys)
    assert "gives log-probs that are no numbers: its weights may be broken" in found


def saved_again(path, tensors=None, metadata=None):
    """A checkpoint as another program would write it."""
    with safe_open(path, framework="pt") as file:
        kept = {key: file.get_tensor(key).clone() for key in file.keys()}
        metadata = file.metadata() if metadata is None else metadata
    save_file(kept if tensors is None else tensors(kept), path, metadata=metadata)


def without(*beginnings):
    return lambda tensors: {key: value for key, value in tensors.items() if not key.startswith(beginnings)}


def reshaped(tensors):
    name = min(key for key in tensors if key.startswith("weight."))
    return tensors | {name: tensors[name].flatten()[:5].clone()}


CHECKPOINT, MANIFEST = "checkpoint.safetensors", "manifest.json"
DAMAGE = {  # what was done to which file, what is said after its name, and whether `eval --run` needs the file
    "manifest empty": (MANIFEST, lambda p: p.write_text(""), " is not whole: Expecting value", True),
    "manifest cut": (MANIFEST, lambda p: cut_to(p, 40), " is not whole: ", True),
    "manifest no UTF-8": (MANIFEST, lambda p: p.write_bytes(b"\xff\xfe{}"), " is not whole: ", True),
    "manifest a list": (MANIFEST, lambda p: p.write_text("[]"), " holds no settings of this version", True),
    "manifest another's": (MANIFEST, lambda p: p.write_text('{"files": {}}'), " holds no settings of this", True),
    "settings a text": (MANIFEST, lambda p: edit(p, settings="tiny"), " holds no settings of this version", True),
    "costs a number": (MANIFEST, lambda p: edit(p, costs=3), " holds no costs of this version", False),
    "costs unknown": (MANIFEST, lambda p: edit(p, costs={"colour": 3}), " holds no costs of this version", False),
    "costs a text": (MANIFEST, lambda p: edit(p, costs={"token": "dear"}), " holds no costs of this version", False),
    "date a number": (MANIFEST, lambda p: edit(p, date=7), " holds no date: ", True),
    "date no date": (MANIFEST, lambda p: edit(p, date="yesterday"), " holds no date: ", True),
    "checkpoint empty": (CHECKPOINT, lambda p: p.write_bytes(b""), " can't be read, it may be cut short", True),
    "checkpoint a text": (CHECKPOINT, lambda p: p.write_text("weights " * 9), " can't be read, it may be cut", True),
    "no metadata": (CHECKPOINT, lambda p: saved_again(p, metadata={}), " doesn't say of which update it is", True),
    "metadata": (CHECKPOINT, lambda p: saved_again(p, metadata={"update": "x"}), " doesn't say of which update", True),
    "no moments": (CHECKPOINT, lambda p: saved_again(p, without("exp_avg_sq.")), " is another model's: ", True),
    "no weights": (CHECKPOINT, lambda p: saved_again(p, without("weight.")), " is another model's: ", True),
    "nothing": (CHECKPOINT, lambda p: saved_again(p, without("")), " is another model's: ", True),
    "other shapes": (CHECKPOINT, lambda p: saved_again(p, reshaped), " is another model's: ", True),
    "metrics gone": ("metrics.jsonl", lambda p: p.unlink(), " is missing: the run can't go on", False),
    "metrics empty": ("metrics.jsonl", lambda p: p.write_text(""), " ends before update 0", False),
    "metrics short": ("metrics.jsonl", lambda p: line(p, 2, None), " ends before update 2", False),
    "metrics cut": ("metrics.jsonl", lambda p: line(p, 1, '{"update": 1, "rew'), ", line 2: not the row of", False),
    "metrics no object": ("metrics.jsonl", lambda p: line(p, 0, "7"), ", line 1: not the row of update 0", False),
    "metrics swapped": ("metrics.jsonl", lambda p: line(p, 1, '{"update": 2}'), ", line 2: not the row of", False),
    "metrics poor": ("metrics.jsonl", lambda p: line(p, 1, '{"update": 1}'), ", line 2: not the row of", False),
    "rollouts gone": ("rollouts.jsonl", lambda p: p.unlink(), " is missing: the run can't go on", False),
    "rollouts cut": ("rollouts.jsonl", lambda p: line(p, 1, "{"), ", line 2: not the row of update 1", False),
}


def cut_to(path, size):
    path.write_bytes(path.read_bytes()[:size])


def line(path, k, text):
    lines = path.read_text().splitlines()
    lines[k : k + 1] = [] if text is None else [text]
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert llm("train", *QUICK, "--out", folder) == 0
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_that_is_damaged(damage, whole_run, tmp_path, capsys):
    """One sentence that names the file, and nothing of the run is changed."""
    name, change, words, of_eval = DAMAGE[damage]
    run = shutil.copytree(whole_run, tmp_path / "run")
    change(run / name)
    before = contents(run)
    assert f"{run / name}{words}" in mistake(["train", *QUICK, "--resume", "--out", run], capsys)
    assert contents(run) == before
    if of_eval:
        assert f"{run / name}{words}" in mistake(["eval", "--run", run], capsys)


@pytest.mark.parametrize(("name", "value"), [("model", 5), ("updates", "six"), ("scale", "z"), ("colour", "red")])
def test_eval_of_a_run_with_other_settings(name, value, whole_run, tmp_path, capsys):
    run = shutil.copytree(whole_run, tmp_path / "run")
    edit(run / MANIFEST, settings=json.loads((run / MANIFEST).read_text())["settings"] | {name: value})
    found = mistake(["eval", "--run", run], capsys)
    assert f"{run / MANIFEST} holds no settings of this version of minigrpo: " in found
    assert name in found


def test_rows_after_the_checkpoint_may_be_cut(whole_run, tmp_path):
    """They are made again: a run that was killed while it wrote."""
    run = shutil.copytree(whole_run, tmp_path / "run")
    saved_again(run / CHECKPOINT, metadata={"update": "1"})
    line(run / "metrics.jsonl", 1, '{"update": 1, "rew')
    assert llm("train", *QUICK, "--resume", "--out", run) == 0
    assert [row["update"] for row in read_metrics(run)] == [0, 1, 2]


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors"])
def test_what_is_left_of_a_run_is_not_added_to(name, whole_run, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(whole_run / name, run)
    before = contents(run)
    assert f"{run} holds {name} of another run: name another" in mistake(["train", *QUICK, "--out", run], capsys)
    assert contents(run) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "RUN", "--model", "tiny"], "has a model and settings of its own: leave out --model and --preset"),
        (["--run", "RUN", "--preset", "cpu"], "has a model and settings of its own: leave out --model and --preset"),
        (["--run", "nowhere"], "manifest.json is missing: nowhere is not the folder of a run"),
        (["--samples", "0"], "samples must be at least 1"),
        (["--samples", "2", "--temperature", "0"], "1 where temperature is 0 (greedy), got 2"),
        (["--temperature", "-1"], "temperature must be at least 0, got -1.0"),
    ],
)
def test_mistakes_of_eval(arguments, words, run, capsys):
    arguments = [run if argument == "RUN" else argument for argument in arguments]
    assert words in mistake(["eval", *arguments], capsys)


@pytest.mark.parametrize("command", ["overlap", "plot"])
def test_a_folder_that_is_no_run(command, tmp_path, capsys):
    out = ["--out", tmp_path / "plot.png"] if command == "plot" else []
    assert "is missing" in mistake([command, tmp_path, *out], capsys)
    (tmp_path / "manifest.json").write_text('{"settings": {"colour": "green"}}')
    (tmp_path / "metrics.jsonl").write_text('{"update": 0, "reward": 1.0, "eval_acc')
    mistake([command, tmp_path, *out], capsys)
    (tmp_path / "manifest.json").write_text('{"settings": {}}')
    assert "metrics.jsonl, line 1: " in mistake([command, tmp_path, *out], capsys)
    for text in ("[]", "7", '{"reward": 1.0}', '{"update": 0, "entropy": 1.0}', '"\\ud800'):
        (tmp_path / "metrics.jsonl").write_text(text)
        assert "metrics.jsonl, line 1: " in mistake([command, tmp_path, *out], capsys)
    (tmp_path / "metrics.jsonl").write_text("")
    assert "is empty: the run" in mistake([command, tmp_path, *out], capsys)
    assert not (tmp_path / "plot.png").exists()


def test_every_setting_is_an_option_with_its_line(capsys):
    with pytest.raises(SystemExit):
        llm("train", "--help")
    text = capsys.readouterr().out
    for name in Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("model", "asked", "threads"), [("tiny", [], [1]), ("tiny", ["--threads", 3], [3]), ("smollm2-135m", [], [])]
)
def test_tiny_takes_one_thread_unless_asked_otherwise(monkeypatch, tmp_path, model, asked, threads):
    def train(*_, **__):
        raise ValueError("enough")

    taken = []
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    assert llm("train", "--model", model, "--out", tmp_path / "run", *asked) == 2
    assert taken == threads


def test_the_earlier_name_of_forward_is_still_an_option():
    """And `--updates`, which begins alike, is another."""
    arguments = build_parser().parse_args(["train", "--out", "run", "--update", "packed", "--updates", "3"])
    assert (arguments.forward, arguments.updates) == ("packed", 3)
    assert build_parser().parse_args(["train", "--out", "run", "--forward", "shared"]).forward == "shared"
