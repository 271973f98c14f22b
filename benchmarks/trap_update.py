"""What does an update of the trap with a language model cost beyond what it cannot do without?

`table1 --policy smollm2-135m` trains 135 million weights on a tree of 15 inner nodes. An update needs one forward and
one backward pass over these nodes, and AdamW's step; the rest (samples, rewards, objective, loss, the exact
probabilities) is what we add. `train_language_trap` and the bare three, ten updates each in turns, CPU time of one
thread.
"""

from __future__ import annotations

import itertools

import torch
from _common import CPU_TIME, alternate, main, markdown, span, spread
from transformers import GPT2Config, GPT2LMHeadModel

from minigrpo.llm.models import quiet
from minigrpo.llm.trap import LanguageTrap, TreePolicy, load_tree_policies, train_language_trap

PARTS = ("forward", "backward", "AdamW's step")


def small(config: LanguageTrap) -> TreePolicy:
    """Two layers of 64 units, for --quick."""
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=100))
    return TreePolicy(model, torch.tensor([1]), torch.tensor([2, 3]), config.depth)


def bare(policy: TreePolicy, config: LanguageTrap, spent: dict[str, float]) -> None:
    """As many updates with nothing but the passes over the tree and the optimiser's step; adds what each part took."""
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=config.learning_rate, fused=True)
    for _ in range(config.updates):
        times = [CPU_TIME()]
        loss = policy.leaf_logps().mean()
        times.append(CPU_TIME())
        loss.backward()
        times.append(CPU_TIME())
        optimizer.step()
        optimizer.zero_grad()
        times.append(CPU_TIME())
        for part, (begin, end) in zip(PARTS, itertools.pairwise(times), strict=True):
            spent[part] = spent.get(part, 0.0) + end - begin


def measure(quick: bool) -> dict:
    name, updates, rounds = ("two small layers", 2, 2) if quick else ("smollm2-135m", 10, 7)
    config = LanguageTrap(updates=updates, window=updates)
    if quick:
        policy = small(config)
    else:
        with quiet():
            policy = load_tree_policies(config)(0)
    spent: dict[str, float] = {}
    seconds = alternate(
        {
            "update": lambda: train_language_trap(policy, config, "lambda_grpo", (1, -0.5), 0, early=False),
            "bare": lambda: bare(policy, config, spent),
        },
        rounds,
    )
    total = sum(spent.values())
    row = {
        "policy": name,
        "updates": updates,
        "seconds": {way: spread([s / updates for s in sample]) for way, sample in seconds.items()},
        "ratio": spread([a / b for a, b in zip(seconds["update"], seconds["bare"], strict=True)]),
        "share": {part: value / total for part, value in spent.items()},
    }
    return {"rows": [row]}


def table(result: dict) -> str:
    header = ["policy", "an update s", "its passes and step alone s", "ratio", *(f"{part}, share" for part in PARTS)]
    lines = [
        [
            row["policy"],
            span(row["seconds"]["update"], ".2f"),
            span(row["seconds"]["bare"], ".2f"),
            span(row["ratio"], ".2f"),
            *(f"{row['share'][part]:.0%}" for part in PARTS),
        ]
        for row in result["rows"]
    ]
    return markdown(header, lines)


if __name__ == "__main__":
    main("trap_update", __doc__, measure, table)
