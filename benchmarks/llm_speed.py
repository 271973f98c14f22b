"""How many updates a minute, ours against TRL's GRPOTrainer, and what does λ-GRPO add to one?

One process, in turns: after each update of TRL's own `train()` (its transformers path, no vLLM) a callback makes one
of ours, as `minigrpo.llm.training.train` does it, on a copy of the model. Both take the same prompts, group size,
micro-batches, AdamW, learning rate and loss (token mean, no KL), in float32 without gradient checkpointing, and sample
exactly max_new_tokens for each completion: TRL by min_new_tokens, ours by an EOS that is in no vocabulary. As no
completion ends by itself, it is rewarded where the answer stands anywhere in it. Neither evaluates, saves or logs;
both decode, reward and compute their metrics. CPU time of one thread.

smollm2-135m is measured only where it is cached already. Needs TRL: pip install trl
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import statistics
import sys
import tempfile
import warnings
from importlib.metadata import version

import torch
from _common import CPU_TIME, alternate, main, markdown, span, spread
from torch.utils.flop_counter import FlopCounterMode

from minigrpo.llm.forward import FORWARDS, forward_costs
from minigrpo.llm.metrics import describe
from minigrpo.llm.models import (
    SMOLLM2_HUB,
    cache_folder,
    cached_folder,
    checkpointing_name,
    is_converted,
    load_model,
    quiet,
)
from minigrpo.llm.prompts import encode_prompts
from minigrpo.llm.sampling import Samples, sample_completions
from minigrpo.llm.scoring import decode
from minigrpo.llm.settings import PRESETS, Settings
from minigrpo.llm.tasks import Task, load_task
from minigrpo.llm.training import problems_of
from minigrpo.llm.update import Learner, descend, prepare, set_attention
from minigrpo.objectives import OBJECTIVES

CASES = [
    (dataclasses.replace(PRESETS["cpu"].settings, prompts=4), 40),  # settings, updates of each
    (PRESETS["cpu"].settings, 30),
    (PRESETS["laptop"].settings, 7),
]
PHASES = ("prompts", "sampling", "rewards", "metrics", "objective", "forward + backward", "optimiser")
COUNTED = ("sampling", "forward + backward")
WARM_UP = 2


def reward(text: str, answer: str) -> float:
    """1 where the answer stands in the text: see above."""
    return float(answer in text)


class Ours:
    """A model and its optimiser, ready for updates that tell how long each phase took."""

    def __init__(self, settings: Settings, task: Task) -> None:
        self.settings, self.task = settings, task
        loaded = load_model(settings.model)
        set_attention(loaded.model, settings.attention)
        self.model, self.tokenizer = prepare(loaded.model, settings), loaded.tokenizer
        self.optimizer = Timed(self.model.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
        costs = forward_costs(loaded.model)
        self.learner = Learner(self.model, None, self.optimizer, settings, tuple(FORWARDS), costs, settings.micro_batch)

    def sample(self, prompts: list[list[int]], seed: int) -> Samples:
        """As in `train`, but for the EOS."""
        settings = self.settings
        return sample_completions(
            self.model,
            prompts,
            group_size=settings.group_size,
            max_new_tokens=settings.max_new_tokens,
            eos_ids=(),  # every completion has max_new_tokens tokens
            pad_id=self.tokenizer.pad_token_id,
            temperature=settings.temperature,
            generator=torch.Generator().manual_seed(seed),
        )

    def __call__(self, update: int) -> dict[str, float]:
        """CPU seconds of each phase, and of the two objectives on the same samples. As in `train`, without files."""
        settings, clock = self.settings, [CPU_TIME()]
        problems = problems_of(self.task, settings, update)
        self.model.eval()
        prompts = encode_prompts(self.tokenizer, problems["prompt"], self.task.system_prompt)
        clock.append(CPU_TIME())
        samples = self.sample(prompts, update)
        clock.append(CPU_TIME())
        texts = decode(self.tokenizer, samples.completion_ids, samples.completion_mask)
        answers = [answer for answer in problems["answer"] for _ in range(settings.group_size)]
        scores = [reward(text, answer) for text, answer in zip(texts, answers, strict=True)]
        rewards = torch.tensor(scores).view(-1, settings.group_size)
        clock.append(CPU_TIME())
        describe(samples, rewards, eos_ids=())
        clock.append(CPU_TIME())
        ids, mask = samples.completion_ids, samples.completion_mask
        tensors = OBJECTIVES[settings.objective](rewards, ids, mask, scale=settings.scale)
        clock.append(CPU_TIME())
        self.model.train()
        descend(self.learner, samples, *tensors)
        clock += [CPU_TIME() - self.optimizer.seconds, CPU_TIME()]
        if not mask.all():
            raise RuntimeError("a completion of ours ended early: the lengths compared are not equal")
        seconds = {name: b - a for name, (a, b) in zip(PHASES, itertools.pairwise(clock), strict=True)}
        for name in ("grpo", "lambda_grpo"):  # after the update, so that neither is counted in it
            begin = CPU_TIME()
            OBJECTIVES[name](rewards, ids, mask, scale=settings.scale)
            seconds[name] = CPU_TIME() - begin
        return seconds

    def products(self) -> dict[str, int]:
        """Floating-point operations of the linear layers' matrix products in one update, by phase."""
        settings = self.settings
        prompts = encode_prompts(self.tokenizer, problems_of(self.task, settings, 0)["prompt"], self.task.system_prompt)
        self.model.eval()
        with FlopCounterMode(display=False) as sampling:
            samples = self.sample(prompts, 0)
        tensors = samples.old_logps, torch.ones_like(samples.old_logps)  # any numbers do
        self.model.train()
        with FlopCounterMode(display=False) as learning:
            descend(self.learner, samples, *tensors)
        counts = (counter.get_flop_counts()["Global"] for counter in (sampling, learning))
        return dict(zip(COUNTED, (count[torch.ops.aten.mm] for count in counts), strict=True))


def products_per_second() -> float:
    """How many floating-point operations a second a large matrix product makes on this machine."""
    size = 1024
    a, b = torch.randn(2, size, size)
    return 2 * size**3 / min(alternate({"product": lambda: a @ b}, 10)["product"])


class Timed(torch.optim.AdamW):
    """AdamW that keeps how long its last step took."""

    def step(self) -> None:
        begin = CPU_TIME()
        super().step()
        self.seconds = CPU_TIME() - begin


def in_turns(settings: Settings, updates: int) -> tuple[list[float], list[dict[str, float]], dict[str, int]]:
    """CPU seconds of TRL's updates, those of ours by phase, made one after the other, and our matrix products."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    task = load_task(settings.task, train_size=settings.train_size)
    total = WARM_UP + updates
    problems = [problems_of(task, settings, update) for update in range(total)]
    opening = [] if task.system_prompt is None else [{"role": "system", "content": task.system_prompt}]
    rows = [
        {"prompt": [*opening, {"role": "user", "content": prompt}], "answer": answer}
        for batch in problems
        for prompt, answer in zip(batch["prompt"], batch["answer"], strict=True)
    ]
    tokens: list[int] = []  # of each completion of TRL's

    def reward_all(completions: list, completion_ids: list, answer: list, **_: object) -> list[float]:
        tokens.extend(map(len, completion_ids))
        return [reward(message[0]["content"], right) for message, right in zip(completions, answer, strict=True)]

    ours, mine, theirs = Ours(settings, task), [], []

    class Turns(TrainerCallback):
        """Makes one of our updates after each of TRL's."""

        def on_train_begin(self, *_: object, **__: object) -> None:
            self.begin = CPU_TIME()

        def on_step_end(self, *_: object, **__: object) -> None:
            theirs.append(CPU_TIME() - self.begin)
            mine.append(ours(len(mine)))
            self.begin = CPU_TIME()

    completions = settings.prompts * settings.group_size
    micro_batch = min(settings.micro_batch, completions)
    with tempfile.TemporaryDirectory() as folder, quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that TRL and transformers are about to change
        loaded = load_model(settings.model)
        config = GRPOConfig(
            output_dir=folder,
            max_steps=total,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=completions // micro_batch,
            num_generations=settings.group_size,
            max_completion_length=settings.max_new_tokens,
            generation_kwargs={"min_new_tokens": settings.max_new_tokens},
            loss_type="dapo",
            beta=0.0,
            temperature=settings.temperature,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=settings.max_grad_norm,
            **{checkpointing_name(GRPOConfig): False},
            bf16=False,
            use_cpu=True,
            shuffle_dataset=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=loaded.model,
            args=config,
            reward_funcs=reward_all,
            train_dataset=Dataset.from_list(rows),
            processing_class=loaded.tokenizer,
            callbacks=[Turns()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if tokens != [settings.max_new_tokens] * completions * total:
        raise RuntimeError("TRL's completions are not as many or as long as ours")
    return theirs[WARM_UP:], mine[WARM_UP:], ours.products()


def row(settings: Settings, updates: int) -> dict:
    """One case: updates a minute of each, where ours spends its time, and what λ-GRPO adds."""
    theirs, phases, products = in_turns(settings, updates)
    speed = products_per_second()
    ours = [sum(seconds[name] for name in PHASES) for seconds in phases]
    added = [(seconds["lambda_grpo"] - seconds["grpo"]) / whole for seconds, whole in zip(phases, ours, strict=True)]
    return {
        "model": settings.model,
        "P": settings.prompts,
        "G": settings.group_size,
        "T": settings.max_new_tokens,
        "micro_batch": settings.micro_batch,
        "updates_per_minute": {
            "ours": spread([60 / seconds for seconds in ours]),
            "trl": spread([60 / seconds for seconds in theirs]),
        },
        "times_faster": spread([b / a for a, b in zip(ours, theirs, strict=True)]),
        "phases": {name: spread([seconds[name] for seconds in phases]) for name in PHASES},
        "share": {
            name: spread([seconds[name] / whole for seconds, whole in zip(phases, ours, strict=True)])
            for name in PHASES
        },
        "products": products,
        "products_per_second": speed,
        "least_share": {name: count / speed / statistics.median(ours) for name, count in products.items()},
        "lambda_added_share": spread(added),
    }


def measure(quick: bool) -> dict:
    if importlib.util.find_spec("trl") is None:
        sys.exit("llm_speed: measures against TRL, which is not installed: pip install trl")
    has_smollm2 = cached_folder(SMOLLM2_HUB) or is_converted(cache_folder() / "smollm2-135m")
    cases = [(CASES[0][0], 2)] if quick else [case for case in CASES if case[0].model == "tiny" or has_smollm2]
    return {
        "versions": {name: version(name) for name in ("transformers", "trl")},
        "rows": [row(settings, updates) for settings, updates in cases],
    }


def table(result: dict) -> str:
    first = markdown(
        ["model", "P×G×T", "ours, updates a minute", "TRL's", "ours more by", "λ adds, % of an update"],
        [
            [
                row["model"],
                "×".join(str(row[axis]) for axis in "PGT"),
                *(span(row["updates_per_minute"][name]) for name in ("ours", "trl")),
                span(row["times_faster"], ".2f"),
                span(row["lambda_added_share"], ".2f", scale=100),
            ]
            for row in result["rows"]
        ],
    )
    second = markdown(
        ["share of our update, %", "P×G×T", *PHASES],
        [
            [
                row["model"],
                "×".join(str(row[axis]) for axis in "PGT"),
                *(
                    f"{row['share'][name]['median'] * 100:.1f}"
                    + (f" (≥ {row['least_share'][name] * 100:.0f})" if name in COUNTED else "")
                    for name in PHASES
                ),
            ]
            for row in result["rows"]
        ],
    )
    return f"{first}\n\n{second}"


if __name__ == "__main__":
    main("llm_speed", __doc__, measure, table)
