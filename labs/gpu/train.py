"""Train by a recipe: `accelerate launch --config_file accelerate/….yaml train.py recipes/….yaml [NAME=VALUE …]`.

A recipe names a model, a task and TRL's settings; NAME=VALUE changes any of them. `--dry-run` is the same run with a
tiny random model and sums in the place of the model and the task, a few tokens and two updates, on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from minigrpo.commands import INTERRUPTED
from minigrpo.files import write_json
from minigrpo.llm.signals import deadline, stop_signals

RECIPE = {  # what a recipe may hold besides TRL's settings, with defaults
    "model": None,
    "task": None,
    "all_problems": False,  # train on the held-out ones too, as the paper does: its benchmarks are others
    "validation": 0,  # of the held-out ones, never trained on: TRL's eval_dataset
    "system_prompt": None,
    "prompts": None,  # of an update; each is sampled num_generations times
    "lora": None,
}
ALL_ENDS = "1.15"  # the first TRL that reads every end of the model's generation configuration
TOLD = "recipe.json"  # in --out: what is trained there
EVERY_PROBLEM = 10**6  # more than a task has
DRY_RUN = {
    "model_init_kwargs": None,
    "use_vllm": False,
    "use_cpu": True,
    "bf16": False,
    "max_completion_length": 8,
    "max_steps": 2,
    "logging_steps": 1,
    "eval_steps": 1,
    "save_steps": 1,
    "report_to": "none",
}


def main(argv: list[str]) -> int:
    """Train; return 0, 130 for a run that stopped early, or 2 after one sentence for a user's mistake."""
    arguments = parser().parse_intermixed_args(argv)
    more = "" if arguments.auto_resume else " and --resume"
    try:
        if train(arguments):
            return 0
        code, said = INTERRUPTED, f"stopped early: go on with the same command{more}"
    except (ValueError, OSError, ImportError) as error:
        code, said = 2, " ".join(str(error).split())
    except KeyboardInterrupt:
        code, said = INTERRUPTED, f"stopped at once: go on from the last checkpoint with the same command{more}"
    if os.environ.get("RANK", "0") == "0":
        print(f"train.py: {said}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """Describe the options."""
    options = argparse.ArgumentParser(description="Train a language model by a recipe, with TRL.")
    options.add_argument("recipe", type=Path, help="a .yaml file, as those in recipes/")
    options.add_argument("changes", nargs="*", metavar="NAME=VALUE", help="of the recipe or of TRL, such as beta=0.04")
    options.add_argument("--objective", default="lambda_grpo", help="grpo, prm or lambda_grpo (default)")
    options.add_argument("--out", type=Path, required=True, help="folder of checkpoints and the trained model")
    how = options.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    how.add_argument("--auto-resume", action="store_true", help="the same where there is a whole one, else start")
    options.add_argument("--max-minutes", type=float, help="stop in time with a checkpoint (exit code 130)")
    options.add_argument("--dry-run", action="store_true", help="a tiny random model, two updates, on the CPU")
    return options


def train(arguments: argparse.Namespace) -> bool:
    """Run one recipe, and say whether it reached its end. Raises ValueError, OSError or ImportError with a sentence."""
    in_time = deadline(arguments.max_minutes)
    recipe, settings = read_recipe(arguments.recipe, arguments.changes)
    if arguments.dry_run:
        settings |= DRY_RUN
        recipe["validation"] = min(recipe["validation"], 4)
    settings["gradient_accumulation_steps"] = accumulation(recipe, settings)
    from transformers import AutoTokenizer

    from minigrpo.integrations.trl import ProcessGRPOTrainer, check_arguments  # says so where TRL doesn't fit
    from minigrpo.llm.prompts import encode_prompts
    from minigrpo.llm.tasks import load_task

    args = configuration(arguments, settings)
    told = {"objective": arguments.objective, "seed": args.seed}
    if arguments.resume or arguments.auto_resume:
        check_same(arguments.out, told)
        if is_done(arguments.out, args.max_steps):
            return True
    check_arguments(arguments.objective, {"args": args})
    check_trl(args)
    name = "sums" if arguments.dry_run else recipe["task"]
    task = load_task(name, train_size=EVERY_PROBLEM, heldout_size=EVERY_PROBLEM)
    rows, validation = divide(task, recipe)
    model = random_model(arguments.out) if arguments.dry_run else recipe["model"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    system = recipe["system_prompt"] or task.system_prompt
    check_ends(model, tokenizer, args)
    prompts = [*rows["prompt"], *validation["prompt"]]
    check_lengths(model, encode_prompts(tokenizer, prompts, system), prompts, args)
    trainer = ProcessGRPOTrainer(
        model=model,
        reward_funcs=reward_function(odd_length if arguments.dry_run else task.reward),
        args=args,
        train_dataset=conversations(rows, system, tokenizer),
        eval_dataset=conversations(validation, system, tokenizer) if len(validation) else None,
        peft_config=lora(recipe["lora"]),
        objective=arguments.objective,
    )
    check_engine(trainer.accelerator)
    if trainer.accelerator.is_main_process:
        write_json(arguments.out / TOLD, told | {"recipe": str(arguments.recipe), "changes": arguments.changes})
    with stop_signals() as signals:
        trainer.stop_when(lambda: bool(signals or not in_time()))
        trainer.train(resume_from_checkpoint=where_to_resume(arguments))
    finished = trainer.state.global_step >= trainer.state.max_steps
    if finished:
        trainer.save_model()
    return finished


def check_same(out: Path, told: dict[str, Any]) -> None:
    """Refuse to go on with a run of another objective or seed. Raises: ValueError."""
    if not (out / TOLD).exists():
        return
    before = json.loads((out / TOLD).read_text(encoding="utf-8"))
    other = [f"{name} {before.get(name)!r}, not {value!r}" for name, value in told.items() if before.get(name) != value]
    if other:
        raise ValueError(f"{out} was made with other settings: {'; '.join(other)}")


def is_done(out: Path, updates: int) -> bool:
    """Whether a run has its last checkpoint and its model: resumed, transformers would make an update more."""
    return (out / f"checkpoint-{updates}" / "trainer_state.json").exists() and any(out.glob("*.safetensors"))


def where_to_resume(arguments: argparse.Namespace) -> bool | str | None:
    """What TRL is told: True for the last checkpoint, one by name, or None for a start."""
    whole = [path.parent for path in arguments.out.glob("checkpoint-*/trainer_state.json")]  # it is written last
    if arguments.auto_resume and whole:
        return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2])))
    return arguments.resume or None


def configuration(arguments: argparse.Namespace, settings: dict[str, Any]) -> Any:
    """TRL's own settings object. Raises ValueError for a name that it doesn't know."""
    from trl import GRPOConfig

    from minigrpo.llm.models import checkpointing_name

    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"{arguments.recipe}: neither a recipe nor TRL's GRPOConfig has a setting {unknown[0]!r}")
    # Recipes have the name of all versions; transformers has another by now.
    name = checkpointing_name(GRPOConfig)
    renamed = {key.replace("gradient_checkpointing", name): value for key, value in settings.items()}
    return GRPOConfig(output_dir=str(arguments.out), **renamed)


def read_recipe(path: Path, changes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a recipe's own settings and TRL's, with changes. Raises ValueError or OSError."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold settings, a line 'name: value' each")
    for change in changes:
        name, equals, value = change.partition("=")
        if not (name and equals):
            raise ValueError(f"changes must look like NAME=VALUE, got {change!r}")
        found[name] = yaml.safe_load(value)
    needed = ("model", "task", "prompts", "num_generations", "per_device_train_batch_size")
    if missing := [name for name in needed if found.get(name) is None]:
        raise ValueError(f"{path} must have a setting {missing[0]!r}")
    recipe = {name: found.pop(name, default) for name, default in RECIPE.items()}
    if type(recipe["validation"]) is not int or recipe["validation"] < 0:
        raise ValueError(f"validation must be a whole number of at least 0, got {recipe['validation']!r}")
    return recipe, found


def accumulation(recipe: dict[str, Any], settings: dict[str, Any]) -> int:
    """How many micro-batches make an update of `prompts` groups on so many processes. Raises ValueError."""
    processes, micro_batch = int(os.environ.get("WORLD_SIZE", "1")), settings["per_device_train_batch_size"]
    completions = recipe["prompts"] * settings["num_generations"]
    if completions % (micro_batch * processes):
        raise ValueError(
            f"prompts × num_generations must be a multiple of per_device_train_batch_size × processes, "
            f"got {recipe['prompts']} × {settings['num_generations']} and {micro_batch} × {processes}"
        )
    return completions // (micro_batch * processes)


def divide(task: Any, recipe: dict[str, Any]) -> tuple[Any, Any]:
    """Rows to train on and rows to validate on, the same for every seed. Raises ValueError for too few problems."""
    from datasets import concatenate_datasets

    size, most = recipe["validation"], len(task.heldout)
    if size > most:
        raise ValueError(f"validation must be at most {most}, the problems that {task.name!r} holds out, got {size}")
    # lists: datasets takes no empty range at a data set's end
    validation, rest = (task.heldout.select(list(part)) for part in (range(size), range(size, most)))
    return concatenate_datasets([task.train, rest]) if recipe["all_problems"] else task.train, validation


def conversations(rows: Any, system: str | None, tokenizer: Any) -> Any:
    """Problems as chats, with their answers; a template without a system role has it before the problem."""
    from minigrpo.llm.prompts import has_system_role

    apart = bool(system) and has_system_role(tokenizer)
    opening = [{"role": "system", "content": system}] if apart else []
    before = f"{system}\n\n" if system and not apart else ""
    return rows.map(lambda row: {"prompt": [*opening, {"role": "user", "content": before + row["prompt"]}]})


def check_lengths(model: str, ids: list[list[int]], prompts: list[str], args: Any) -> None:
    """Require that each prompt leaves room for its completion. Raises ValueError."""
    from transformers import AutoConfig

    from minigrpo.llm.prompts import shown
    from minigrpo.llm.sampling import context_of

    limits = [context_of(AutoConfig.from_pretrained(model))]
    if args.use_vllm and args.vllm_max_model_length:
        limits.append((args.vllm_max_model_length, f"vllm_max_model_length {args.vllm_max_model_length}"))
    lengths = list(map(len, ids))
    longest = max(lengths)
    k = lengths.index(longest)
    for limit, words in limits:
        if longest + args.max_completion_length > limit:
            raise ValueError(
                f"problem {k + 1} ({shown(prompts[k])!r}): prompt of {longest} tokens and max_completion_length "
                f"{args.max_completion_length} must fit into {words}: shorten one of them"
            )


def check_ends(model: str, tokenizer: Any, args: Any) -> None:
    """Require a TRL that ends a completion, and masks what follows, wherever the model's generation ends."""
    from packaging.version import Version
    from transformers import AutoConfig, GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # the model has no generation_config.json
        found = AutoConfig.from_pretrained(model).eos_token_id
    others = set(found if isinstance(found, list) else [found]) - {tokenizer.eos_token_id, None}
    trl = metadata.version("trl")
    # vLLM stops by itself; TRL would still take what ended there for cut off
    if others and Version(trl) < Version(ALL_ENDS) and not (args.use_vllm and not args.mask_truncated_completions):
        raise ValueError(
            f"trl {trl} ends a completion at {tokenizer.eos_token!r} alone, and {model} also at "
            f"{', '.join(tokenizer.convert_ids_to_tokens(sorted(others)))}: pip install 'trl>={ALL_ENDS}'"
        )


def check_trl(args: Any) -> None:
    """Require a TRL that can choose by the reward, and that takes the mean of the generations of an update."""
    from packaging.version import Version

    trl, needs = metadata.version("trl"), []
    if args.metric_for_best_model not in (None, "loss", "eval_loss"):
        needs.append(("1.5", "can't choose the best checkpoint by anything but the loss"))
    if args.steps_per_generation < args.gradient_accumulation_steps:
        needs.append(("1.10", "adds up the generations of an update, where later ones take their mean"))
    for first, why in needs:
        if Version(trl) < Version(first):
            raise ValueError(f"trl {trl} {why}: pip install 'trl>={needs[-1][0]}'")


def check_engine(accelerator: Any) -> None:
    """Require the engine that the configuration names: without a GPU accelerate takes DDP for FSDP, and is silent."""
    found = accelerator.distributed_type.value
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}") == "true" and found != name:
            raise ValueError(f"the configuration asks for {name}, and accelerate has taken {found}: it needs GPUs")


def reward_function(reward: Any) -> Any:
    """TRL's form of a reward of ours."""

    def accuracy(completions: list[list[dict]], answer: list[str], **columns: Any) -> list[float]:
        return [reward(messages[0]["content"], a) for messages, a in zip(completions, answer, strict=True)]

    return accuracy


def odd_length(completion: str, answer: str) -> float:
    """A reward that a random model earns half of the time, so that a dry run has gradients."""
    return float(len(completion) % 2)


def lora(settings: dict[str, Any] | None) -> Any:
    """Adapters, where the recipe asks for them."""
    if settings is None:
        return None
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **settings)


def random_model(out: Path) -> str:
    """Write a random Llama of two small layers that reads characters; the same for every process.

    Its heads are as wide as vLLM takes them.
    """
    from accelerate import PartialState
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

    from minigrpo.llm.models import TINY

    folder = out / "random-model"
    with PartialState(cpu=True).local_main_process_first():
        if not folder.is_dir():
            set_seed(0)
            tokenizer = AutoTokenizer.from_pretrained(TINY)
            tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
            sizes = {
                "vocab_size": len(tokenizer),
                "hidden_size": 64,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
            }
            special = {
                "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            }
            LlamaForCausalLM(LlamaConfig(**sizes, **special)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
