"""Small TRL runs for the tests, also as a program: `accelerate launch … trl_runs.py OUT JSON` trains and saves.

Run as a program, completions are not sampled but made from a seed for each row of the whole batch, so that any number
of processes has the same data.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from minigrpo.llm.models import TINY, checkpointing_name

PROMPTS = ["7+18-4=", "3+5=", "12-7+1=", "9+9-8=", "2+3=", "15-4=", "6+7-2=", "11+2="]

OFF = {checkpointing_name(GRPOConfig): False}  # TRL's default is on, by the name that warns


def reward(completions, completion_ids, **columns):
    """Some number that differs between completions, exact in binary."""
    return [(sum(ids) + len(ids)) % 7 / 4 for ids in completion_ids]


def trainer(
    kind,
    out,
    *,
    model=None,
    reward_funcs=reward,
    deterministic=False,
    peft_config=None,
    prompts=PROMPTS,
    columns=None,
    more=None,
    **settings,
):
    """A trainer of a class (with further arguments `more`) on `tiny` in float64, under plain gradient descent.

    Ours computes rows as TRL does, where `more` does not ask for packing.
    """
    ours = {"pack": False} if kind is not GRPOTrainer else {}
    defaults = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        **OFF,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.003,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 2,
        "loss_type": "dapo",
        "use_bias_correction_kl": False,
    }
    tokenizer = AutoTokenizer.from_pretrained(TINY, padding_side="left")
    made = kind(
        model or tiny(),
        reward_funcs,
        args=GRPOConfig(**defaults | settings),
        train_dataset=Dataset.from_dict({"prompt": prompts} | (columns or {})),
        processing_class=tokenizer,
        peft_config=peft_config,
        **ours | (more or {}),
    )
    if deterministic:
        made.model.generate = completions_of_rows(tokenizer, made.args.num_generations, made.args.max_completion_length)
    return made


def tiny():
    """The tiny model in float64, in which sums in another order differ by 1e-15 only."""
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64)


def completions_of_rows(tokenizer, group_size, longest):
    """A stand-in for `model.generate`: completions that follow from the prompt, the row in its group and the call."""
    calls = 0
    alphabet = tokenizer.convert_tokens_to_ids(["1", "2"])

    def generate(input_ids, attention_mask, **options):
        nonlocal calls
        calls += 1
        rows = []
        for n, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            place = (PartialState().process_index * len(input_ids) + n) % group_size
            draw = random.Random(f"{ids[mask.bool()].tolist()} {place} {calls}")
            length = draw.randint(1, 6)
            row = [draw.choice(alphabet) for _ in range(length)] + [tokenizer.eos_token_id]
            rows.append(row[:longest])
        T = max(map(len, rows))
        padded = [row + [tokenizer.pad_token_id] * (T - len(row)) for row in rows]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)

    return generate


def weights(made):
    """What was trained, by name."""
    model = made.accelerator.unwrap_model(made.model)
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


if __name__ == "__main__":
    from minigrpo.integrations.trl import ProcessGRPOTrainer

    out, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    made = trainer(
        ProcessGRPOTrainer,
        out,
        deterministic=True,
        more={name: options.pop(name) for name in ("objective", "pack") if name in options},
        **options,
    )
    made.train()
    if made.accelerator.is_main_process:
        torch.save({"weights": weights(made), "log": made.state.log_history}, out / "end.pt")
