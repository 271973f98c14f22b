"""From a user's message to token ids: the chat template, its system role and its date, and whether prompts fit."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Sequence

from jinja2 import TemplateError
from torch import nn
from transformers import PreTrainedTokenizerBase

from minigrpo.llm.models import LoadedModel, reason_of
from minigrpo.llm.sampling import check_context
from minigrpo.llm.tasks import Task

TODAY = re.compile(r"""strftime_now\s*\(\s*(["'])(.*?)\1\s*\)""")  # how templates ask for the date
# a template is a program, and raises what programs raise
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError)
PROBE = "minigrpo"  # a system prompt that no template has of its own
# characters of a prompt, half from its beginning and half from its end, that say which one it is
SHOWN = 40


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], system: str | None
) -> list[list[int]]:
    """Turn user messages into token ids with the model's chat template, ready for its answer.

    A template without a system role gets the system prompt at the beginning of the user's message.

    Args:
        tokenizer: with a chat template.
        prompts: user messages, P texts.
        system: the system prompt; None for none.

    Raises: ValueError, with the model in it, for a template that can't be used.
    """
    opening, before = [], ""
    if system is not None and has_system_role(tokenizer):
        opening = [{"role": "system", "content": system}]
    elif system is not None:
        before = f"{system}\n\n"
    try:
        return [
            tokenizer.apply_chat_template(
                [*opening, {"role": "user", "content": before + prompt}],
                add_generation_prompt=True,
                return_dict=False,
                # `check_prompts` says it better where one is too long
                tokenizer_kwargs={"verbose": False},
            )
            for prompt in prompts
        ]
    except TEMPLATE_ERRORS as error:
        raise _unusable(tokenizer, error) from error


def has_system_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a chat template shows a system message: some refuse it, some leave it out."""
    messages = [{"role": "system", "content": PROBE}, {"role": "user", "content": "1+1="}]
    try:
        return PROBE in tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
    except TEMPLATE_ERRORS:
        return False


def fix_date(loaded: LoadedModel, date: datetime.date) -> LoadedModel:
    """Put a date where the chat template asks for today's, so that a run goes on tomorrow with the prompts of today.

    Raises: ValueError, with the model in it, for a template that asks for it in another way than a plain one.
    """
    tokenizer = loaded.tokenizer
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several templates, and none is the default
        raise _unusable(tokenizer, error) from error
    fixed, found = TODAY.subn(
        lambda call: json.dumps(date.strftime(call[2]), ensure_ascii=False), template
    )
    if re.search(r"strftime_now(?!\s+is\s)", fixed):
        raise ValueError(
            f"the chat template of model {tokenizer.name_or_path!r} asks for the date in a way that a run can't keep: "
            'write its format as a text, such as strftime_now("%d %b %Y")'
        )
    tokenizer.chat_template = fixed
    return dataclasses.replace(loaded, template_date=date.isoformat() if found else None)


def _unusable(tokenizer: PreTrainedTokenizerBase, error: Exception) -> ValueError:
    return ValueError(
        f"the chat template of model {tokenizer.name_or_path!r} can't be used: {reason_of(error)}"
    )


def longest_prompt(
    loaded: LoadedModel, task: Task, max_new_tokens: int, *, train: bool = True
) -> int:
    """The tokens of a task's longest prompt, of both sides or of the held-out one. Raises: as `check_prompts`.

    Args:
        loaded: the model.
        task: whose prompts are encoded.
        max_new_tokens: of an answer at most.
        train: look at the training problems, too.
    """
    longest = 0
    for side, problems in (("training", task.train),) * train + (("held-out", task.heldout),):
        ids = encode_prompts(loaded.tokenizer, problems["prompt"], task.system_prompt)
        longest = max(
            longest, check_prompts(loaded.model, side, problems["prompt"], ids, max_new_tokens)
        )
    return longest


def check_prompts(
    model: nn.Module,
    side: str,
    prompts: Sequence[str],
    ids: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> int:
    """Require that prompts leave room for an answer, and return the tokens of the longest.

    Args:
        model: whose context counts.
        side: "training" or "held-out", for the message.
        prompts: P texts.
        ids: their tokens.
        max_new_tokens: of an answer at most.

    Raises: ValueError with the longest prompt's number and beginning where it doesn't fit.
    """
    lengths = list(map(len, ids))
    longest = max(lengths)
    k = lengths.index(longest)
    check_context(
        model, longest, max_new_tokens, where=f"{side} problem {k + 1} ({shown(prompts[k])!r}): "
    )
    return longest


def shown(prompt: str) -> str:
    """A prompt, or its beginning and end: many of a task begin alike."""
    return prompt if len(prompt) <= SHOWN else f"{prompt[: SHOWN // 2]}…{prompt[-SHOWN // 2 :]}"
