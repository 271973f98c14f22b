"""The recipes for GPUs, each as a dry run on two CPU processes; their costs; the page for practitioners."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.version import Version

pytest.importorskip("trl", reason="trl is optional: make test-trl runs these")

from safetensors.torch import load_file

from minigrpo.llm.gpu import Card, Shape, recipe_memory, recipe_seconds, validation_seconds
from minigrpo.llm.models import TINY
from minigrpo.llm.tasks import load_task

ROOT = Path(__file__).resolve().parent.parent
GPU = ROOT / "labs" / "gpu"
RECIPES = sorted(path.stem for path in (GPU / "recipes").glob("*.yaml"))
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "OMP_NUM_THREADS": "1",
}
OLD = Version(metadata.version("trl")) < Version("1.10")


def dry_run(recipe, out, *more):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", str(GPU / "accelerate" / "dry_run.yaml"), str(GPU / "train.py")]
    command += [str(GPU / "recipes" / f"{recipe}.yaml"), "--out", str(out), "--dry-run", *more]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)


# One of them here, as each takes both cores for half a minute; the others with what else takes minutes of labs/.
DRY = [pytest.param(name, marks=[] if name == "one_gpu_lora" else pytest.mark.labs) for name in RECIPES]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", DRY)
def test_dry_run(tmp_path, recipe):
    """Two updates on two processes, with gradients, and a model at the end; the paper's Llama with its β."""
    changes = ["beta=0.04"] if recipe == "paper_llama" else []
    done = dry_run(recipe, tmp_path, *changes)
    if OLD and recipe.startswith("paper"):
        assert "pip install 'trl>=1.10'" in done.stderr
        return
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text(encoding="utf-8"))
    rows = [row for row in state["log_history"] if "grad_norm" in row]
    assert len(rows) == 2
    assert min(row["grad_norm"] for row in rows) > 0
    assert ("kl" in rows[0]) == bool(changes)
    validated = [row["step"] for row in state["log_history"] if "eval_reward" in row]
    assert validated == ([1, 2] if recipe.startswith("paper") else [])
    saved = "adapter_model" if "lora" in (GPU / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8") else "model"
    assert load_file(tmp_path / f"{saved}.safetensors")


@pytest.mark.skipif(OLD, reason="train.py refuses the paper's recipes under an older TRL")
def test_the_best_checkpoint_outlives_the_resumed_run(tmp_path, monkeypatch):
    """Best after update 1, broken off after 2, resumed to 4: the first and the last are kept, and the first given."""
    train = module("train")

    def best_after_one(completions, trainer_state, **columns):
        return [(trainer_state.global_step == 1) + 0.1 * (len(messages[0]["content"]) % 2) for messages in completions]

    monkeypatch.setattr(train, "reward_function", lambda reward: best_after_one)
    command = [str(GPU / "recipes" / "paper_qwen.yaml"), "--out", str(tmp_path), "--dry-run"]
    command += ["gradient_checkpointing=false"]  # its warnings would be errors here
    for updates, resume in ((2, []), (4, ["--resume"])):
        monkeypatch.setitem(train.DRY_RUN, "max_steps", updates)
        assert train.main([*command, *resume]) == 0
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-4"]
    first, last, given = (
        load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("checkpoint-1", "checkpoint-4", ".")
    )
    assert all((given[name] == value).all() for name, value in first.items())
    assert any((given[name] != value).any() for name, value in last.items())
    rows = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert [row["step"] for row in rows if "eval_reward" in row] == [1, 2, 3, 4]


@pytest.mark.skipif(OLD, reason="train.py refuses the paper's recipes under an older TRL")
def test_a_recipe_stops_in_time_and_goes_on_by_itself(tmp_path, monkeypatch, capsys):
    """Exit codes say which; a checkpoint that was cut short is passed over."""
    train = module("train")
    command = [str(GPU / "recipes" / "one_gpu_lora.yaml"), "--out", str(tmp_path), "--dry-run", "--auto-resume"]
    command += ["gradient_checkpointing=false"]
    monkeypatch.setitem(train.DRY_RUN, "max_steps", 3)
    assert train.main([*command, "--max-minutes", "0.0001"]) == 130
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert not (tmp_path / "adapter_model.safetensors").exists()
    (tmp_path / "checkpoint-2").mkdir()
    assert train.main(command) == 0
    rows = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert (tmp_path / "adapter_model.safetensors").exists()
    told = json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8"))
    assert (told["objective"], told["seed"], told["changes"]) == ("lambda_grpo", 42, ["gradient_checkpointing=false"])
    assert train.main(command) == 0  # done: nothing is left to do
    assert train.main([*command, "--objective", "grpo"]) == 2
    assert "other settings: objective 'lambda_grpo', not 'grpo'" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["paper_llama", "paper_qwen"])
def test_the_papers_recipes_fit_together(recipe):
    """24 micro-batches an update; whole batches of the validation, whose mean of means is the mean; 40 validations."""
    found, settings = module("train").read_recipe(GPU / "recipes" / f"{recipe}.yaml", [])
    assert module("train").accumulation(found, settings) == 24
    assert found["validation"] % settings["per_device_eval_batch_size"] == 0
    assert settings["max_steps"] / settings["eval_steps"] == 40
    assert settings["save_steps"] == settings["eval_steps"]


@pytest.mark.parametrize("every", [False, True], ids=["of the training side", "of all problems"])
def test_validation_is_never_trained_on(every):
    task = load_task("arithmetic", train_size=50, heldout_size=30)
    rows, validation = module("train").divide(task, {"validation": 12, "all_problems": every})
    assert validation["prompt"] == task.heldout["prompt"][:12]
    assert rows["prompt"] == [*task.train["prompt"], *(task.heldout["prompt"][12:] if every else [])]
    assert not set(rows["prompt"]) & set(validation["prompt"])


def test_too_few_problems_to_validate_on_is_one_sentence(tmp_path, capsys):
    line = refused(capsys, tmp_path, TINY, problems(tmp_path, "1+1=", "2+2="), "validation=2")
    assert re.fullmatch(r"train\.py: validation must be at most 1, the problems that '.*' holds out, got 2", line)


def test_a_prompt_of_the_validation_that_leaves_no_room_is_named_too(tmp_path, capsys):
    """The long one of two problems is the one that is held out."""
    for terms in range(60, 100):
        long = "1+" * terms + "1="
        task = problems(tmp_path, "1+1=", long)
        if load_task(task).heldout["prompt"][0] == long:
            break
    line = refused(capsys, tmp_path, saved_model(tmp_path), task, "validation=1")
    assert line.startswith("train.py: problem 2 ('1+1+")


def test_a_trl_that_can_not_choose_or_average_is_refused(monkeypatch):
    train = module("train")
    args = SimpleNamespace(metric_for_best_model=None, steps_per_generation=24, gradient_accumulation_steps=24)

    def check(version):
        monkeypatch.setattr(train.metadata, "version", lambda name: version)
        train.check_trl(args)

    check("0.29.0")
    args.metric_for_best_model = "eval_loss"
    check("0.29.0")
    args.metric_for_best_model = "eval_reward"
    check("1.5.0")
    with pytest.raises(ValueError, match=r"trl 1\.4\.0 can't choose .* pip install 'trl>=1\.5'"):
        check("1.4.0")
    args.steps_per_generation = 6
    check("1.10.0")
    with pytest.raises(ValueError, match=r"trl 1\.9\.0 adds up the generations .* pip install 'trl>=1\.10'"):
        check("1.9.0")
    with pytest.raises(ValueError, match=r"trl 0\.29\.0 can't choose .* pip install 'trl>=1\.10'"):
        check("0.29.0")


def script(capsys, tmp_path, *more):
    """The script on a recipe with changes, in this process: its return code and its last line."""
    recipe = str(GPU / "recipes" / "one_gpu_lora.yaml")
    code = module("train").main([recipe, "--out", str(tmp_path / "out"), *more])
    return code, capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["beta"], "train.py: changes must look like NAME=VALUE, got 'beta'"),
        (["betta=0.04"], "neither a recipe nor TRL's GRPOConfig has a setting 'betta'"),
        (["num_generations=5"], "got 16 × 5 and 7 × 1"),
        (["validation=-1"], "train.py: validation must be a whole number of at least 0, got -1"),
        (["--dry-run", "validation=all"], "train.py: validation must be a whole number of at least 0, got 'all'"),
        (["validation=true"], "train.py: validation must be a whole number of at least 0, got True"),
        (["model=null"], "one_gpu_lora.yaml must have a setting 'model'"),
        (
            ["--dry-run", "--objective", "dpo"],
            "one of dr_grpo, grpo, lambda_grpo, maxrl, prm, rloo, tempo, got 'dpo'",
        ),
        (["--dry-run", "loss_type=grpo"], "loss_type must be 'dapo' for the process objectives, got 'grpo'"),
        (["use_vllm=false", "bf16=false", "use_cpu=true", "task=missing.jsonl"], "missing.jsonl is not a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(tmp_path, capsys, more, sentence):
    more = [*more, "per_device_train_batch_size=7"] if "num_generations=5" in more else more
    code, line = script(capsys, tmp_path, *more)
    assert code == 2
    assert sentence in line


@pytest.mark.parametrize(("asked", "found"), [("FSDP", "MULTI_CPU"), ("DEEPSPEED", "NO"), ("FSDP", "FSDP")])
def test_another_engine_than_was_asked_for_is_refused(monkeypatch, asked, found):
    """accelerate takes FSDP on a CPU for DDP."""
    monkeypatch.setenv(f"ACCELERATE_USE_{asked}", "true")
    check, accelerator = module("train").check_engine, SimpleNamespace(distributed_type=SimpleNamespace(value=found))
    if asked == found:
        check(accelerator)
        return
    with pytest.raises(ValueError, match=f"asks for {asked}, and accelerate has taken {found}: it needs GPUs"):
        check(accelerator)


def test_a_data_set_without_the_columns_is_refused(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1+1=", "solution": "2"}\n', encoding="utf-8")
    code, line = script(capsys, tmp_path, "use_vllm=false", "bf16=false", "use_cpu=true", f"task={rows}")
    assert code == 2
    assert line.endswith("line 1: field 'answer' is missing, the fields are prompt, solution")


def module(name):
    """A script of labs/gpu as a module."""
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", GPU / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses look themselves up there
    spec.loader.exec_module(loaded)
    return loaded


def saved_model(folder, *, template=None, ends=None):
    """`tiny`'s tokenizer and configurations, without weights: what must be refused is so before they are loaded."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    AutoConfig.from_pretrained(TINY).save_pretrained(folder)
    if ends:
        GenerationConfig(eos_token_id=ends).save_pretrained(folder)
    return str(folder)


def problems(folder, *prompts):
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "answer": "2"}) + "\n" for p in prompts), encoding="utf-8")
    return str(path)


def refused(capsys, tmp_path, model, task, *changes):
    """The sentence of the script, here in this process."""
    changes = ["prompts=1", "num_generations=2", "per_device_train_batch_size=2", "max_completion_length=24", *changes]
    changes += ["use_vllm=false", "bf16=false", "use_cpu=true", f"model={model}", f"task={task}"]
    code, line = script(capsys, tmp_path, *changes)
    assert code == 2
    return line


def test_a_prompt_that_leaves_no_room_is_named_before_a_model_is_loaded(tmp_path, capsys):
    model, long = saved_model(tmp_path), "1+" * 60 + "1="
    task = problems(tmp_path, "1+1=", "2+2=", long, "3-1=", "0+2=", "5-3=", "9-7=", "8-6=")
    line = refused(capsys, tmp_path, model, task, "all_problems=true")
    said = (
        r"train\.py: problem [1-8] \('1\+1\+.*….*\+1='\): prompt of 124 tokens and max_completion_length 24 must fit "
        r"into the model's context of 128: shorten one of them"
    )
    assert re.fullmatch(said, line)


def test_a_prompt_that_is_too_long_is_not_named_by_the_systems_words(tmp_path, capsys):
    model, long = saved_model(tmp_path, template=REFUSES + EACH), "1+" * 60 + "1="
    task = problems(tmp_path, "1+1=", "2+2=", long, "3-1=", "0+2=", "5-3=", "9-7=", "8-6=")
    line = refused(capsys, tmp_path, model, task, "all_problems=true", "system_prompt=2+2=4")
    assert "('1+1+" in line


def test_vllms_own_limit_counts_too(tmp_path):
    check = module("train").check_lengths
    prompts = ["1+1="], [[2, 3, 4, 5, 6, 7]]
    args = SimpleNamespace(use_vllm=True, vllm_max_model_length=14, max_completion_length=8)
    check(str(TINY), prompts[1], prompts[0], args)
    args.max_completion_length = 9
    with pytest.raises(ValueError, match="must fit into vllm_max_model_length 14"):
        check(str(TINY), prompts[1], prompts[0], args)
    args.use_vllm = False
    check(str(TINY), prompts[1], prompts[0], args)


REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
EACH = "{% for m in messages %}{{ '[' + m.role + ']' + m.content }}{% endfor %}"
LEAVES_OUT = "{% for m in messages if m.role != 'system' %}{{ '[' + m.role + ']' + m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (EACH, "[system]Add.[user]1+1="),
        (REFUSES + EACH, "[user]Add.\n\n1+1="),
        (LEAVES_OUT, "[user]Add.\n\n1+1="),
    ],
    ids=["has a system role", "refuses it", "leaves it out"],
)
def test_a_template_without_a_system_role_has_it_before_the_problem(template, text):
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = template
    rows = Dataset.from_dict({"prompt": ["1+1="], "answer": ["2"]})
    (row,) = module("train").conversations(rows, "Add.", tokenizer)
    assert tokenizer.apply_chat_template(row["prompt"], tokenize=False) == text
    assert row["answer"] == "2"
    (row,) = module("train").conversations(rows, None, tokenizer)
    assert row["prompt"] == [{"role": "user", "content": "1+1="}]


def test_a_template_that_can_not_be_used_is_one_sentence(tmp_path, capsys):
    model = saved_model(tmp_path, template="{{ raise_exception('never') }}")
    line = refused(capsys, tmp_path, model, problems(tmp_path, "1+1=", "2+2="))
    assert line == f"train.py: the chat template of model {str(model)!r} can't be used: never"


def test_a_model_with_further_ends_needs_a_trl_that_reads_them(tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    train, tokenizer = module("train"), AutoTokenizer.from_pretrained(TINY)
    more = saved_model(tmp_path, ends=[tokenizer.eos_token_id, 5])
    args = SimpleNamespace(use_vllm=False, mask_truncated_completions=False)
    monkeypatch.setattr(train.metadata, "version", lambda name: train.ALL_ENDS)
    train.check_ends(more, tokenizer, args)
    monkeypatch.setattr(train.metadata, "version", lambda name: "1.14.2")
    train.check_ends(str(TINY), tokenizer, args)  # one end, which both have
    for args.use_vllm, args.mask_truncated_completions in ((False, False), (False, True), (True, True)):
        with pytest.raises(ValueError) as caught:
            train.check_ends(more, tokenizer, args)
        assert str(caught.value) == (
            f"trl 1.14.2 ends a completion at '<eos>' alone, and {more} also at "
            f"{tokenizer.convert_ids_to_tokens(5)}: pip install 'trl>={train.ALL_ENDS}'"
        )
    args.mask_truncated_completions = False  # vLLM stops by itself
    train.check_ends(more, tokenizer, args)


def block(text, name):
    return re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, re.DOTALL)[1]


def test_costs_in_the_readme_are_computed():
    cost = module("cost")
    assert set(cost.MACHINES) == set(RECIPES)
    assert block((GPU / "README.md").read_text(encoding="utf-8"), "cost") == cost.table()


def test_readme_names_files_that_exist():
    text = (GPU / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"labs/gpu/[\w/]+\.(?:yaml|py)", text)
    named += [f"labs/gpu/accelerate/{name}" for name in re.findall(r"`(\w+\.yaml) ", text)]
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    assert {f"labs/gpu/recipes/{name}.yaml" for name in RECIPES} <= set(named)
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert [link for link in links if not (GPU / link).exists()] == []


@pytest.mark.parametrize("path", sorted((GPU / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    processes = {"one_gpu": 1, "fsdp": 8, "zero3": 16, "dry_run": 2}
    assert config.num_processes == processes[path.stem]


def test_memory_and_hours_by_hand():
    """Adam's 16 bytes a weight, shared by the GPUs, plus vLLM's share, are most of a full run's memory."""
    shape, card = Shape(1, 1, 1, 1, 10**9, True), Card("", 10, 1e12, 1e12)
    recipe = {"per_device_train_batch_size": 1, "max_completion_length": 100, "vllm_gpu_memory_utilization": 0.5}
    assert recipe_memory(recipe, shape, card, 4) == pytest.approx(16 / 4 + 5, rel=1e-4)
    recipe |= {"prompts": 2, "num_generations": 5, "beta": 0.0}
    generation, training = 100 * 2e9 / (1e12 * 0.5), 10e9 * 10 * 300 / 4 / (1e12 * 0.3)
    assert recipe_seconds(recipe, shape, card, 4) == pytest.approx(generation + training, rel=1e-4)
    apart = recipe | {"generation_batch_size": 5}  # a prompt at a time
    assert recipe_seconds(apart, shape, card, 4) == pytest.approx(2 * generation + training, rel=1e-4)


def test_validation_by_hand():
    """7 problems in batches of 4 are two on one card, one on two; such a batch can need more memory than training."""
    shape, card = Shape(1, 1, 1, 1, 10**9, True), Card("", 10, 1e12, 1e12)
    recipe = {"validation": 7, "num_generations_eval": 1, "per_device_eval_batch_size": 4, "beta": 0.0}
    recipe |= {"max_completion_length": 100}
    batch = 100 * 2e9 / (1e12 * 0.5) + 4e9 * 4 * 300 / (1e12 * 0.3)
    assert validation_seconds(recipe, shape, card, 1) == pytest.approx(2 * batch, rel=1e-4)
    assert validation_seconds(recipe, shape, card, 2) == pytest.approx(batch, rel=1e-4)
    with_reference = batch + 2e9 * 4 * 300 / (1e12 * 0.3)
    assert validation_seconds(recipe | {"beta": 0.1}, shape, card, 2) == pytest.approx(with_reference, rel=1e-4)
    wide = Shape(1, 10**6, 10**6, 1, 1, True)
    recipe |= {"lora": {"r": 1}, "per_device_train_batch_size": 1, "vllm_gpu_memory_utilization": 0.5}
    weights = recipe_memory(recipe | {"max_completion_length": -200}, wide, card, 1)
    assert recipe_memory(recipe, wide, card, 1) - weights == pytest.approx(4 * 300 * 2 * 16e6 / 1e9, rel=1e-4)


PAGE = (ROOT / "docs" / "trl.md").read_text(encoding="utf-8")
SCRIPT, WEIGH = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_the_script_of_the_page_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rewards = json.loads(done.stdout.splitlines()[-1])
    assert len(rewards) == 6
    assert min(rewards) > 0.4


def test_tables_of_the_page_are_the_measured_ones():
    result = json.loads((ROOT / "docs" / "results" / "trl.json").read_text(encoding="utf-8"))
    first, second = module("measure").tables(result["rows"]).split("\n\n")
    assert block(PAGE, "overlap") == f"```text\n{first}\n```"
    assert block(PAGE, "cost") == f"```text\n{second}\n```"
    assert result["model"] == "smollm2-135m"


@pytest.mark.slow
def test_measuring_runs(tmp_path):
    """On `tiny`: less is shared at a higher temperature and 1/|λ| is never above 1; the adapter's seconds are few."""
    out = tmp_path / "rows.json"
    command = [sys.executable, str(GPU / "measure.py"), "--model", "tiny", "--updates", "2", "--json", str(out)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    *overlap, cost = json.loads(out.read_text(encoding="utf-8"))["rows"]
    shared = {(row["temperature"], row["group_size"]): row["shared"] for row in overlap}
    assert len(shared) == 12
    assert all(shared[0.5, G] > shared[1.25, G] for G in (4, 8, 16))
    assert all(1 / row["group_size"] <= row["weight"] <= 1 for row in overlap)
    assert 0 < cost["scoring_seconds"] + cost["metrics_seconds"] < cost["update_seconds"]


def weighed_batch():
    """A shuffled batch of groups for other engines: λ-GRPO's gradient, GRPO's, and what an engine's loss takes."""
    import torch

    from minigrpo import OBJECTIVES, policy_loss

    names: dict = {}
    exec(WEIGH, names)
    P, G, T = 3, 4, 5
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 2, (P, G, T), generator=draw)
    mask = torch.arange(T) < torch.randint(1, T + 1, (P, G, 1), generator=draw)
    rewards = torch.randn(P, G, dtype=torch.float64, generator=draw)
    old = torch.randn(P, G, T, dtype=torch.float64, generator=draw)
    noise = torch.randn(P, G, T, dtype=torch.float64, generator=draw)
    logps = (old + 0.3 * noise).requires_grad_()
    a, _ = OBJECTIVES["grpo"](rewards, ids, mask)
    mixed = torch.randperm(P * G, generator=draw)
    uid = [f"prompt {row // G}" for row in mixed.tolist()]
    rows = (value.flatten(0, 1)[mixed] for value in (a, ids, mask))
    weighed = names["weigh"](*rows, uid)

    def gradient(loss):
        return torch.autograd.grad(loss, logps)[0].flatten(0, 1)[mixed]

    ours, grpo = (
        gradient(policy_loss(logps, old, *OBJECTIVES[name](rewards, ids, mask), mask, epsilon=0.2))
        for name in ("lambda_grpo", "grpo")
    )
    assert (ours - grpo).abs().max() > 1e-3
    taken = (value.flatten(0, 1)[mixed] for value in (old, logps, mask))
    return ours, gradient, weighed, *taken


def test_weighing_advantages_is_lambda_grpo():
    """The page's function for other engines: at β 0 it gives `policy_loss` of λ-GRPO, with clipping, groups mixed."""
    import torch

    from minigrpo import policy_loss

    ours, gradient, weighed, old, logps, mask = weighed_batch()
    loss = policy_loss(logps[None], old[None], weighed[None], torch.ones_like(weighed[None]), mask[None], epsilon=0.2)
    assert (gradient(loss) - ours).abs().max() <= 1e-12


def test_verls_own_loss_of_weighed_advantages_is_lambda_grpo():
    """verl's default loss, as its trainer calls it on a worker."""
    core = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is optional and large", exc_type=ImportError)
    from verl.workers.config import ActorConfig

    config = ActorConfig(strategy="fsdp", rollout_n=4, ppo_micro_batch_size_per_gpu=1)
    assert config.loss_agg_mode == "token-mean"
    ours, gradient, weighed, old, logps, mask = weighed_batch()
    loss, _ = core.get_policy_loss_fn("vanilla")(old, logps, weighed, mask, config.loss_agg_mode, config)
    assert (gradient(loss) - ours).abs().max() <= 1e-12
