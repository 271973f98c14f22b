"""Each process step once: what does an update cost padded, with the prompt shared, packed, as `auto` picks, and in TRL?

Random groups of SmolLM2-135M-Instruct (and of `tiny`): prompts of L tokens, G completions of T, of which the first S
are shared. A turn is loss and gradient of one batch (forward and backward pass, completion logits only), made by the
functions that training uses; "TRL" is `GRPOTrainer._compute_loss` and its backward pass on the same batch, left out for
the largest. Gradients are checked equal before anything is timed, but for the large batches. Ratios are padded over the
other, turn by turn, on all cores. Peak memory is what a process of its own holds at most beyond the model, packed
first, then shared, then padded.

"fit" in the JSON: the three constants of `minigrpo.llm.forward`, fitted to the times of padded, shared and packed.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from _common import HERE, WALL_TIME, alternate, main, markdown, span, spread

from minigrpo import OBJECTIVES, policy_loss
from minigrpo.llm import forward
from minigrpo.llm.calibrate import terms
from minigrpo.llm.forward import (
    FORWARDS,
    ForwardCosts,
    forward_costs,
    pack_samples,
    packed_logps,
    padded_logps,
    shared_logps,
)
from minigrpo.llm.models import checkpointing_name, load_model
from minigrpo.llm.sampling import Samples
from minigrpo.llm.update import set_attention
from minigrpo.packing import pack, tree_loss, unpack

# (model, P, G, L, T, S): the first four of smollm2 are the goals; the rest of the grid is for `auto`, where completions
# part at once and are long, too
GRID = (
    ("smollm2-135m", 1, 8, 40, 16, 6),
    ("smollm2-135m", 1, 16, 40, 32, 6),
    ("smollm2-135m", 1, 16, 256, 32, 6),
    ("smollm2-135m", 1, 16, 512, 64, 6),
    ("smollm2-135m", 1, 4, 16, 128, 0),
    ("smollm2-135m", 1, 8, 64, 128, 0),
    ("tiny", 8, 8, 14, 24, 6),
    ("tiny", 8, 8, 14, 24, 0),
    ("tiny", 1, 16, 14, 24, 0),
    ("tiny", 1, 16, 32, 96, 0),
    ("tiny", 1, 4, 8, 120, 0),
)
QUICK = (("tiny", 2, 4, 10, 8, 3), ("tiny", 1, 4, 4, 100, 0))
TOLERANCE = 1e-4  # of the gradient, relative, in float32; of random tokens it is larger than of samples


def group_of(vocabulary: int, P: int, G: int, L: int, T: int, S: int) -> tuple[Samples, torch.Tensor]:
    """P groups of random tokens that share their first S, and rewards (P, G)."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, vocabulary, (P, L), generator=generator)
    ids = torch.randint(3, vocabulary, (P, G, T), generator=generator)
    ids[..., :S] = ids[:, :1, :S]
    mask = torch.ones(P, G, T, dtype=torch.bool)
    rewards = torch.rand(P, G, generator=generator)
    return Samples(prompts, torch.ones(P, L, dtype=torch.bool), ids, mask, torch.zeros(P, G, T)), rewards


def updates_of(model: torch.nn.Module, samples: Samples, rewards: torch.Tensor) -> dict[str, Callable[[], None]]:
    """Calls that leave the gradient of one batch in the weights."""
    ids, mask = samples.completion_ids, samples.completion_mask

    def update(way: str) -> None:
        model.zero_grad()
        tensors = OBJECTIVES["lambda_grpo"](rewards, ids, mask)
        packed = pack(samples.prompt_ids, samples.prompt_mask, ids, mask)  # in each way, as in training
        if way == "packed":
            logps = packed_logps(model, packed)
            loss = tree_loss(logps, unpack(logps.detach(), packed), *tensors, packed)
        else:
            logps = {"padded": padded_logps, "shared": shared_logps}[way](model, samples)
            loss = policy_loss(logps, logps.detach(), *tensors, mask)
        loss.backward()

    return {way: functools.partial(update, way) for way in FORWARDS}


def trl_of(
    model: torch.nn.Module,
    tokenizer: object,
    samples: Samples,
    rewards: torch.Tensor,
    *,
    kind: type | None = None,
    options: dict | None = None,
    **more,
) -> Callable[[], None]:
    """TRL's loss (dapo, β = 0) and its backward pass on the same batch.

    Args: model, tokenizer, samples, rewards: of the batch; kind: TRL's trainer, or one made of it, which takes `more`;
    options: of GRPOConfig, where another device or dtype is meant than the CPU and float32.
    """
    import tempfile

    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    P, G, T = samples.completion_ids.shape
    rows = P * G
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        num_generations=G,
        loss_type="dapo",
        beta=0.0,
        **{"use_cpu": True, "bf16": False} | (options or {}),
        **{checkpointing_name(GRPOConfig): False},
        report_to="none",
    )
    trainer = (kind or GRPOTrainer)(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["1"] * rows}),
        processing_class=tokenizer,
        **more,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by `train`, which is not called
    advantages = OBJECTIVES["grpo"](rewards, samples.completion_ids, samples.completion_mask)[0]
    inputs = {
        "prompt_ids": samples.prompt_ids.repeat_interleave(G, dim=0),
        "prompt_mask": samples.prompt_mask.repeat_interleave(G, dim=0).long(),
        "completion_ids": samples.completion_ids.flatten(0, 1),
        "completion_mask": samples.completion_mask.flatten(0, 1).long(),
        "advantages": advantages[..., 0].flatten(),
        "num_items_in_batch": torch.tensor(rows * T, device=rewards.device),
    }

    def update() -> None:
        model.zero_grad()
        trainer._compute_loss(model, inputs).backward()

    return update


def peaks_mb(name: str, shape: Sequence[int]) -> dict[str, float]:
    """The most memory that an update of each way holds beyond the model, in MB, measured in a process of its own."""
    code = f"import packing; packing.print_peaks({name!r}, {list(shape)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_peaks(name: str, shape: Sequence[int]) -> None:
    """Print the peaks as JSON. The largest ever held only grows: the ways go from the frugal to the greedy one."""
    model = load_model(name).model.train()
    set_attention(model, "default")
    samples, rewards = group_of(model.config.vocab_size, *shape)
    calls = updates_of(model, samples, rewards)
    before, peaks = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {}
    for way in ("packed", "shared", "padded"):
        calls[way]()
        peaks[way] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps(peaks))


def measure(quick: bool) -> dict:
    if not quick and importlib.util.find_spec("trl") is None:
        sys.exit('packing: TRL is not installed: pip install -e ".[dev]"')
    torch.set_num_threads(1 if quick else os.cpu_count() or 1)
    rows = []
    grid = QUICK if quick else GRID
    peaks = [peaks_mb(name, shape) for name, *shape in grid]  # before this process holds much
    for (name, *shape), peak in zip(grid, peaks, strict=True):
        loaded = load_model(name)
        model = loaded.model.train()
        set_attention(model, "default")
        samples, rewards = group_of(model.config.vocab_size, *shape)
        packed = pack_samples(samples)
        calls = updates_of(model, samples, rewards)
        large = samples.completion_mask.numel() > 500 and name != "tiny"  # half a minute a turn and more
        gaps = {} if large else gradient_gaps(model, calls)
        if max(gaps.values(), default=0) > TOLERANCE:
            raise RuntimeError(f"the gradients differ: {gaps}")
        if not quick and samples.completion_mask.numel() < 1000:
            calls["trl"] = trl_of(model, loaded.tokenizer, samples, rewards)
        repeats = 2 if quick or large else 3
        times = alternate(calls, repeats, clock=WALL_TIME, budget=0 if quick else 5, warm_up=not large)
        counts = {way: operations(way, samples, forward_costs(model)) for way in FORWARDS}
        rows.append(
            dict(zip(("model", "P", "G", "L", "T", "S"), (name, *shape), strict=True))
            | {
                "padded_tokens": shape[0] * shape[1] * (shape[2] + shape[3]),
                "packed_tokens": shape[0] * packed.ids.shape[1],
                "seconds": {way: spread(times[way]) for way in times},
                "ratio": {
                    way: spread([a / b for a, b in zip(times["padded"], times[way], strict=True)])
                    for way in times
                    if way != "padded"
                },
                "gradient_gap": gaps,
                "peak_mb": peak,
                "operations": counts,
            }
        )
    return chosen({"rows": rows, "fit": fit(rows)})


def gradient_gaps(model: torch.nn.Module, calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    """‖difference‖ / ‖gradient‖ of each way's gradient against the padded one's."""
    gradients = {}
    for way, call in calls.items():
        call()
        gradients[way] = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    padded = gradients.pop("padded")
    return {way: ((gradient - padded).norm() / padded.norm()).item() for way, gradient in gradients.items()}


def operations(way: str, samples: Samples, costs: ForwardCosts) -> list[float]:
    """A way's operations in linear layers and in the attention, its passes in tokens, its blocks beyond the first."""
    layout = FORWARDS[way].layout(samples)
    prices = (1, forward.ATTENTION_FLOP, forward.PASS_TOKENS, forward.BLOCK_UNIT)
    return [term / price for term, price in zip(terms(way, layout, costs), prices, strict=True)]


def fit(rows: list[dict]) -> dict:
    """The cost model's constants, by least squares of the relative error of predicted seconds, a speed for each model.

    Prices and speeds are found in turn, each by the other.
    """
    cases = [(row["model"], row["operations"][way], row["seconds"][way]["median"]) for row in rows for way in FORWARDS]
    models, counts, seconds = (np.array(column) for column in zip(*cases, strict=True))
    speeds = {name: float((counts[:, 0] / seconds)[models == name].mean()) for name in set(models.tolist())}
    for _ in range(200):
        shares = counts / (seconds * np.array([speeds[name] for name in models]))[:, None]
        prices = np.append(1.0, np.linalg.lstsq(shares[:, 1:], 1 - shares[:, 0], rcond=None)[0])
        taken = counts @ prices / seconds
        speeds = {name: float((taken**2)[models == name].sum() / taken[models == name].sum()) for name in speeds}
    error = np.abs(counts @ prices / (seconds * np.array([speeds[name] for name in models])) - 1)
    return {
        "attention": float(prices[1]),
        "pass": float(prices[2]),
        "block": float(prices[3]),
        "operations_per_second": speeds,
        "median_error": float(np.median(error)),
    }


def chosen(result: dict) -> dict:
    """Add to each row the way that `auto` takes with the fitted constants."""
    price = np.array([1.0, result["fit"]["attention"], result["fit"]["pass"], result["fit"]["block"]])
    for row in result["rows"]:
        row["auto"] = min(FORWARDS, key=lambda way: price @ row["operations"][way])
    return result


def table(result: dict) -> str:
    header = [
        "model, P × G × (L + T), S shared",
        "tokens",
        "padded s",
        "shared",
        "packed",
        "token ratio",
        "`auto`",
        "TRL",
    ]
    header.append("peak MB: padded, shared, packed")
    lines = []
    for row in result["rows"]:
        ratio, memory = row["ratio"], row["peak_mb"]
        lines.append(
            [
                f"{row['model']}, {row['P']} × {row['G']} × ({row['L']} + {row['T']}), {row['S']}",
                f"{row['padded_tokens']} → {row['packed_tokens']}",
                format(row["seconds"]["padded"]["median"], ".3f"),
                *(span(ratio[way], ".2f") for way in ("shared", "packed")),
                format(row["padded_tokens"] / row["packed_tokens"], ".2f"),
                f"{row['auto']}: {ratio[row['auto']]['median'] if row['auto'] in ratio else 1:.2f}",
                format(ratio["trl"]["median"], ".2f") if "trl" in ratio else "",
                ", ".join(format(memory[way], ".0f") for way in FORWARDS),
            ]
        )
    return markdown(header, lines)


if __name__ == "__main__":
    main("packing", __doc__, measure, table)
