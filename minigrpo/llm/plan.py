"""How long a class keeps its cards busy: what a run needs, how many there are, and when the last one is done.

All of it is computed by `minigrpo.llm.gpu`, and was measured on no card.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigrpo.llm.gpu import (
    CARDS,
    PROMPT,
    SHAPES,
    Card,
    memory,
    minutes,
    recipe_memory,
    recipe_seconds,
    shape_of,
    validation_seconds,
)
from minigrpo.llm.settings import PRESETS, Settings

USABLE = 0.9  # of a card's memory: the rest is the driver's, and gaps
SPARE = 1.5  # runs that fail or are made again


@dataclass(frozen=True)
class Plan:
    """A class on shared cards."""

    name: str  # of the preset or the recipe
    card: Card
    cards: int
    students: int
    runs_each: int
    cards_a_run: int
    memory: float  # GB of a card that a run needs
    hours: float  # of a run

    @property
    def runs(self) -> int:
        """Of the class."""
        return self.students * self.runs_each

    @property
    def fits(self) -> int:
        """How many runs a card's memory holds; they are planned one at a time, as they would share its time."""
        return int(USABLE * self.card.memory / self.memory)

    @property
    def at_once(self) -> int:
        """How many runs the cards hold, one on each."""
        return self.cards // self.cards_a_run

    @property
    def last(self) -> float:
        """Hours until the last run is done, if none fails."""
        return math.ceil(self.runs / self.at_once) * self.hours

    @property
    def card_hours(self) -> float:
        """Of all runs."""
        return self.runs * self.hours * self.cards_a_run


def plan_settings(name: str, settings: Settings, prompt: int = PROMPT, **people: Any) -> Plan:
    """Plan runs of `llm train`.

    Args:
        name: of the preset.
        settings: the preset's, perhaps changed.
        prompt: tokens of a prompt.
        people: card, cards, students and runs_each, as fields of `Plan`.

    Raises: ValueError for numbers below 1, an unknown model, or a run that does not fit, with what would.
    """
    if prompt < 1:
        raise ValueError(f"prompt_tokens must be at least 1, got {prompt}")
    card = people["card"]
    plan = Plan(
        name=name,
        memory=memory(settings, prompt)["all"],
        hours=minutes(settings, card, prompt) / 60,
        cards_a_run=1,
        **people,
    )
    return _checked(plan, lambda: _smaller(settings, card, prompt))


def plan_recipe(path: Path, *, cards_a_run: int = 1, **people: Any) -> Plan:
    """Plan runs of labs/gpu/train.py.

    Args:
        path: of the recipe.
        cards_a_run: over which a run is spread.
        people: as in `plan_settings`.

    Raises: as `plan_settings`; OSError for a file that can't be read.
    """
    recipe = _read(path)
    card = people["card"]
    shape = shape_of(recipe["model"])
    try:
        size = recipe_memory(recipe, shape, card, cards_a_run)
        seconds = recipe["max_steps"] * recipe_seconds(recipe, shape, card, cards_a_run)
        if "validation" in recipe:
            times = recipe["max_steps"] // recipe["eval_steps"]
            seconds += times * validation_seconds(recipe, shape, card, cards_a_run)
    except KeyError as error:
        raise ValueError(f"{path} has no setting {error}, which the plan needs") from error
    plan = Plan(
        name=path.stem, memory=size, hours=seconds / 3600, cards_a_run=cards_a_run, **people
    )
    return _checked(plan, list)


def _read(path: Path) -> dict[str, Any]:
    """A recipe as its YAML says. Raises: ValueError, OSError."""
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict) or "model" not in recipe:
        raise ValueError(f"{path} is no recipe: expected lines 'name: value', a model among them")
    return recipe


def _checked(plan: Plan, smaller: Any) -> Plan:
    """The plan, if it can be kept. Raises: ValueError with what would fit."""
    for name in ("students", "runs_each", "cards", "cards_a_run"):
        if getattr(plan, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(plan, name)}")
    if plan.at_once < 1:
        raise ValueError(
            f"a run of {plan.name} takes {plan.cards_a_run} cards, and there are {plan.cards}"
        )
    if plan.fits < 1:
        usable = USABLE * plan.card.memory
        said = (
            f"{plan.name} needs {plan.memory:.0f} GB, and one {plan.card.name} has {usable:.0f} of "
            f"{plan.card.memory:g} GB to give"
        )
        ways = [*smaller(), *_others(plan.card)]
        raise ValueError(f"{said}; what fits: {'; '.join(ways) if ways else 'no preset'}")
    return plan


def _smaller(settings: Settings, card: Card, prompt: int) -> Iterable[str]:
    """The largest micro-batch with which the same run would fit."""
    for checkpointing in (settings.gradient_checkpointing, True):
        size = settings.micro_batch
        while size >= 1:
            tried = dataclasses.replace(
                settings, micro_batch=size, gradient_checkpointing=checkpointing
            )
            needed = memory(tried, prompt)["all"]
            if needed <= USABLE * card.memory:
                words = " --gradient-checkpointing" if checkpointing else ""
                return [f"--micro-batch {size}{words} ({needed:.0f} GB)"]
            size //= 2
    return []


def _others(card: Card) -> Iterable[str]:
    """Presets for GPUs that fit."""
    for name, preset in PRESETS.items():
        needed = memory(preset.settings)["all"] if preset.settings.model in SHAPES else math.inf
        if preset.settings.device == "cuda" and needed <= USABLE * card.memory:
            yield f"--preset {name} ({needed:.0f} GB)"


def card_of(name: str) -> Card:
    """A card by its name. Raises: ValueError for one that is not in CARDS."""
    if name.lower() not in CARDS:
        raise ValueError(f"card must be one of {', '.join(CARDS)}, got {name!r}")
    return CARDS[name.lower()]


def plan_text(plan: Plan) -> str:
    """The plan in lines."""
    share = f"{plan.memory:.0f} of {plan.card.memory:g} GB"
    lines = {
        "run": f"{plan.name} on {plan.cards_a_run} × {plan.card.name}: {share}, {_time(plan.hours)}",
        "class": f"{plan.students} students × {plan.runs_each} = {plan.runs} runs, {plan.at_once} at a time",
        "last run done": f"after {_time(plan.last)}; with half as much again for failures {_time(SPARE * plan.last)}",
        "cards": f"{plan.card_hours:.1f} card-hours{_price(plan)}",
    }
    if plan.fits > 1:
        lines["memory"] = (
            f"{plan.fits} runs fit on a card, but would share its time: one is planned"
        )
    width = max(map(len, lines))
    rows = [f"{name:<{width}}  {text}" for name, text in lines.items()]
    return "\n".join([*rows, "computed, measured on no card: let one run go first"])


def _price(plan: Plan) -> str:
    """What the card-hours would cost where cards are rented."""
    dollars = plan.card.dollars
    return f", about {plan.card_hours * dollars:.0f} dollars" if dollars else ""


def _time(hours: float) -> str:
    """Hours, or minutes where they are few."""
    return f"{hours:.1f} hours" if hours >= 2 else f"{hours * 60:.0f} minutes"


def plan_row(plan: Plan) -> Mapping[str, Any]:
    """The plan as JSON."""
    kept = {name: value for name, value in dataclasses.asdict(plan).items() if name != "card"}
    more = {name: getattr(plan, name) for name in ("runs", "fits", "at_once", "last", "card_hours")}
    return kept | {"card": plan.card.name} | more
