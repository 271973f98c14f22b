"""An update inside TRL: its own `GRPOTrainer`, and `ProcessGRPOTrainer` with `pack=True` and `pack="auto"`.

Random groups of SmolLM2-135M-Instruct and of `tiny`: prompts of L tokens, G completions of T, of which the first S are
shared. A turn is `_compute_loss` and its backward pass on one micro-batch of P groups (dapo, β = 0), so that λ's own
work and the metrics are in it. Gradients are compared before anything is timed. Ratios are TRL's seconds over the
other's, turn by turn, on all cores. Peak memory is what a process of its own holds at most beyond the model.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence

import torch
from _common import HERE, WALL_TIME, alternate, main, markdown, span, spread
from packing import group_of, trl_of

from minigrpo.llm.models import load_model

# (model, P, G, L, T, S): the first two are the goals; in the rest completions part early, and are long
GRID = (
    ("smollm2-135m", 1, 8, 40, 16, 6),
    ("smollm2-135m", 1, 16, 256, 32, 6),
    ("smollm2-135m", 1, 4, 40, 300, 2),
    ("tiny", 8, 8, 14, 24, 6),
    ("tiny", 1, 4, 8, 120, 0),
)
QUICK = (("tiny", 2, 4, 10, 8, 3), ("tiny", 1, 4, 4, 100, 0))
WAYS = {"trl": None, "packed": True, "auto": "auto"}
TOLERANCE = 1e-4  # of the gradient, relative, in float32


def update_of(way: str, name: str, shape: Sequence[int]) -> tuple[torch.nn.Module, Callable[[], None]]:
    """A model and the update of one way, each with a model of its own: TRL patches it."""
    from minigrpo.integrations.trl import ProcessGRPOTrainer

    loaded = load_model(name)
    samples, rewards = group_of(loaded.model.config.vocab_size, *shape)
    more = {} if way == "trl" else {"kind": ProcessGRPOTrainer, "objective": "grpo", "pack": WAYS[way]}
    return loaded.model, trl_of(loaded.model, loaded.tokenizer, samples, rewards, **more)


def peak_mb(way: str, name: str, shape: Sequence[int]) -> float:
    """The most memory that an update holds beyond the model, in MB, measured in a process of its own."""
    code = f"import trl_packing; trl_packing.print_peak({way!r}, {name!r}, {list(shape)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def print_peak(way: str, name: str, shape: Sequence[int]) -> None:
    """Print the peak. The gradients are there before it is taken, as in training."""
    model, update = update_of(way, name, shape)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    update()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def measure(quick: bool) -> dict:
    if importlib.util.find_spec("trl") is None:
        sys.exit('trl_packing: TRL is not installed: pip install -e ".[dev]"')
    torch.set_num_threads(1 if quick else os.cpu_count() or 1)
    rows = []
    grid = QUICK if quick else GRID
    peaks = [{way: peak_mb(way, name, shape) for way in ("trl", "packed")} for name, *shape in grid]
    for (name, *shape), peak in zip(grid, peaks, strict=True):
        made = {way: update_of(way, name, shape) for way in WAYS}
        calls = {way: update for way, (_, update) in made.items()}
        gradients = {}
        for way, (model, update) in made.items():
            update()
            gradients[way] = torch.cat([weight.grad.flatten() for weight in model.parameters()])
        theirs = gradients.pop("trl")
        gaps = {way: ((ours - theirs).norm() / theirs.norm()).item() for way, ours in gradients.items()}
        if not max(gaps.values()) < TOLERANCE:
            raise RuntimeError(f"the gradients differ: {gaps}")
        del gradients, theirs
        times = alternate(
            calls,
            2 if quick or name != "tiny" else 5,
            clock=WALL_TIME,
            budget=0 if quick else 6,
            warm_up=name == "tiny",
        )
        rows.append(
            dict(zip(("model", "P", "G", "L", "T", "S"), (name, *shape), strict=True))
            | {
                "seconds": {way: spread(times[way]) for way in WAYS},
                "ratio": {
                    way: spread([a / b for a, b in zip(times["trl"], times[way], strict=True)])
                    for way in ("packed", "auto")
                },
                "gradient_gap": gaps,
                "peak_mb": peak,
            }
        )
        print(f"{name} {shape}: {rows[-1]['ratio']['packed']['median']:.2f}", file=sys.stderr)
    return {"rows": rows}


def table(result: dict) -> str:
    header = [
        "model, P × G × (L + T), S shared",
        "TRL s",
        "`pack=True`: times",
        '`"auto"`',
        "gradient gap",
        "peak MB: TRL, packed",
    ]
    lines = []
    for row in result["rows"]:
        lines.append(
            [
                f"{row['model']}, {row['P']} × {row['G']} × ({row['L']} + {row['T']}), {row['S']}",
                format(row["seconds"]["trl"]["median"], ".3f"),
                *(span(row["ratio"][way], ".2f") for way in ("packed", "auto")),
                format(row["gradient_gap"]["packed"], ".0e"),
                ", ".join(format(row["peak_mb"][way], ".0f") for way in ("trl", "packed")),
            ]
        )
    return markdown(header, lines)


if __name__ == "__main__":
    main("trl_packing", __doc__, measure, table)
