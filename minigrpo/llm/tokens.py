"""Single tokens as text, with the tokenizer of a run's model: only one that is on this machine already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minigrpo.llm.models import (
    HUB_ID,
    SMOLLM2_HUB,
    TINY,
    cache_folder,
    cached_folder,
    is_converted,
    quiet,
)
from minigrpo.llm.runs import read_model_name

CUT = "\ufffd"  # what decoding gives for a character of which bytes are missing


def run_tokenizer(run: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model that a run's manifest names, from this machine.

    Raises: ValueError for a folder without a manifest, or a model whose tokenizer is not here; OSError.
    """
    model = read_model_name(run)
    folder = _folder(model)
    if folder is None:
        raise ValueError(f"the tokenizer of {model!r} is not on this machine")
    with quiet():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _folder(model: str) -> Path | None:
    """The folder of a model that `load_model` has had before."""
    converted = cache_folder() / model
    if model == "tiny":
        return TINY
    if model == "smollm2-135m":
        return cached_folder(SMOLLM2_HUB) or (converted if is_converted(converted) else None)
    if Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    return cached_folder(model) if HUB_ID.fullmatch(model) else None


def token_texts(
    tokenizer: PreTrainedTokenizerBase, completion_ids: Sequence[Sequence[int]]
) -> list[list[str]]:
    """Say what each token adds to the text of those before it; "" for the first bytes of a character.

    Joined they are the completion's text, special tokens included.
    Raises: ValueError for an id that the tokenizer doesn't have.
    """
    unknown = {i for row in completion_ids for i in row if not 0 <= i < len(tokenizer)}
    if unknown:
        raise ValueError(
            f"the model's tokenizer has {len(tokenizer)} tokens, and none with the id {min(unknown)}"
        )
    return [list(_added(tokenizer, row)) for row in completion_ids]


def _added(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Iterator[str]:
    before = ""
    for t in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:t], clean_up_tokenization_spaces=False)
        text = text if t == len(ids) else text.rstrip(CUT)
        yield text[len(before) :]
        before = text
