"""Memory, hours and price of the recipes, computed and not measured: `python labs/gpu/cost.py` prints the table.

The formulas and what they assume stand in `minigrpo.llm.gpu`. Prices are rough guesses.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from minigrpo.llm.gpu import A10, H100, SHAPES, recipe_memory, recipe_seconds, validation_seconds

RECIPES = Path(__file__).parent / "recipes"
MACHINES = {  # the card, and how many
    "one_gpu_lora": (A10, 1),
    "one_node": (H100, 8),
    "several_nodes": (H100, 16),
    "paper_qwen": (H100, 1),
    "paper_llama": (H100, 1),
}


def table() -> str:
    """The recipes as a Markdown table."""
    lines = ["| recipe | machine | memory a GPU | updates | hours | dollars |", "| --- | --- | --- | --- | --- | --- |"]
    for name, (card, cards) in MACHINES.items():
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        shape = SHAPES[recipe["model"]]
        updates = recipe["max_steps"]
        seconds = updates * recipe_seconds(recipe, shape, card, cards)
        if "validation" in recipe:
            seconds += updates // recipe["eval_steps"] * validation_seconds(recipe, shape, card, cards)
        hours = seconds / 3600
        machine = f"{cards} × {card.name} {card.memory:g} GB"
        size = f"{recipe_memory(recipe, shape, card, cards):.0f} GB"
        price = f"{hours * cards * card.dollars:.0f}"
        lines.append(f"| `{name}` | {machine} | {size} | {updates} | {hours:.1f} | {price} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
