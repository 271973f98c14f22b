"""What a run finds where it starts: its model, where completions end, its template and prompts, in plain lines."""

from __future__ import annotations

from typing import Any

from minigrpo.llm.models import LoadedModel
from minigrpo.llm.prompts import has_system_role
from minigrpo.llm.sampling import context_of
from minigrpo.llm.settings import Settings
from minigrpo.llm.tasks import Task

NO_SYSTEM = "no system prompt"
OWN = "the system prompt is a message of its own"
BEFORE = "the system prompt stands before the user's text, as the template has no place for it"


def found(loaded: LoadedModel, task: Task, settings: Settings, longest: int) -> dict[str, Any]:
    """Gather the facts, in a form that manifest.json can hold.

    Args:
        loaded: the model.
        task: the run's.
        settings: the run's.
        longest: tokens of a prompt at most.
    """
    context, _ = context_of(loaded.model.config)
    system = (
        NO_SYSTEM
        if task.system_prompt is None
        else OWN
        if has_system_role(loaded.tokenizer)
        else BEFORE
    )
    return {
        "source": loaded.source,
        "parameters": sum(weight.numel() for weight in loaded.model.parameters()),
        "device": settings.device,
        "dtype": settings.dtype,
        "ends": [
            {"id": k, "token": loaded.tokenizer.convert_ids_to_tokens(k)} for k in loaded.eos_ids
        ],
        "system_prompt": system,
        "template_date": loaded.template_date,
        "longest_prompt": longest,
        "max_new_tokens": settings.max_new_tokens,
        "context": int(context) if context < float("inf") else None,
        "golds_checked": task.golds_checked,
        "unequal_golds": len(task.unequal_golds),
    }


def found_lines(facts: dict[str, Any]) -> list[str]:
    """Say the facts of `found`, and the way of updates where there is one, in one line each."""
    ends = ", ".join(f"{end['token']} ({end['id']})" for end in facts["ends"])
    date = facts["template_date"]
    needed = facts["longest_prompt"] + facts["max_new_tokens"]
    room = "any length" if facts["context"] is None else facts["context"]
    golds = "not checked, as the task has no text for them"
    if facts["golds_checked"]:
        bad = facts["unequal_golds"]
        matched = (
            f"{bad} that are not right by their own text"
            if bad
            else "each is right by its own text"
        )
        golds = f"{facts['golds_checked']} checked, {matched}"
    lines = [
        f"model: {facts['source']}, {facts['parameters'] / 1e6:.3g} million parameters, {facts['device']}, "
        f"{facts['dtype']}",
        f"a completion ends at {ends}, or after {facts['max_new_tokens']} tokens",
        f"chat template: {facts['system_prompt']}"
        + (f", today is {date}" if date else ", no date"),
        f"prompts: at most {facts['longest_prompt']} tokens, {needed} with the new ones, of a context of {room}",
        f"right answers: {golds}",
    ]
    return lines + ([f"updates: {facts['updates']}"] if "updates" in facts else [])
