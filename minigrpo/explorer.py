"""The explorer: a group as one HTML page, whole in itself, on which rewards and objective can be changed.

The template `explorer.html` computes R, A and every push anew from the rewards as the reader sets them; the steps
come from `ProcessTree`. Texts of completions may hold anything: they travel as JSON in which no tag can begin, become
text nodes only, and a policy forbids every script but the template's own. Standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_suffix(".html")


def page(*, caption: str, **data: Any) -> str:
    """Fill the template.

    Args: caption: what the group is; data: completions (texts of tokens), rewards, steps (start, length, members,
        parent; depth first), scale, eps, and joint, what stands between tokens in the text of a step.
    """
    template = TEMPLATE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    value = json.dumps({**data, "caption": caption}, allow_nan=False).replace("<", "\\u003c")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: {"policy": f"'sha256-{digest}'", "data": value}[match[1]], template)


def frame(content: str, lines: int) -> str:
    """Put a page into a frame that can run its script and reach nothing else.

    Args: content: the page; lines: of its longer view, rows or steps, from which the height is guessed.
    """
    style = f"width: 100%; height: {min(520 + 56 * lines, 1100)}px; border: 0; resize: vertical"
    title = "Explorer of a group of completions"
    return f'<iframe title="{title}" sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(content)}"></iframe>'


def read_group(path: str | Path, number: int | None = None) -> tuple[dict[str, Any], int, int]:
    """Read one group out of the `rollouts.jsonl` of a run.

    Args: path: that file, or the run's folder; number: which line, from 1; None: the first whose rewards differ, or
        else the first.
    Returns: the group, with completion_ids, rewards, and update, prompt where they are; its number; how many there are.
    Raises: ValueError for a file that holds no groups, a line that is none, or a number it does not have; OSError.
    """
    path = Path(path)
    path = path / "rollouts.jsonl" if path.is_dir() else path
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no rollouts.jsonl of a run: it is not text in UTF-8") from error
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: name a run's folder or its rollouts.jsonl") from error
    if not lines:
        raise ValueError(f"{path} holds no group: it is empty")
    if number is not None and not 1 <= number <= len(lines):
        raise ValueError(f"group must be from 1 to {len(lines)}, the groups of {path}, got {number}")
    first = number or 1
    last = len(lines) if number is None else number
    for k in range(first, last + 1):
        group = _group(lines[k - 1], f"{path}, line {k}")
        if len(set(group["rewards"])) > 1:
            return group, k, len(lines)
    return _group(lines[first - 1], f"{path}, line {first}"), first, len(lines)


def _group(line: str, place: str) -> dict[str, Any]:
    """Read a line. Raises: ValueError, with the place in it."""
    try:
        group = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is no JSON: {error}") from error
    if not isinstance(group, dict) or not {"completion_ids", "rewards"} <= set(group):
        raise ValueError(f"{place} is no group: expected an object with completion_ids and rewards")
    ids, rewards = group["completion_ids"], group["rewards"]
    if not _is_list(ids, list) or not all(_is_list(row, int) for row in ids):
        raise ValueError(f"{place}: completion_ids must be lists of token ids, got {str(ids)[:60]}")
    if not _is_list(rewards, (int, float)) or len(rewards) != len(ids):
        raise ValueError(f"{place}: rewards must be {len(ids)} numbers, one a completion, got {str(rewards)[:60]}")
    return group


def _is_list(value: object, kind: type | tuple[type, ...]) -> bool:
    """Whether a value is a list of one kind of thing; True and False are no numbers."""
    return isinstance(value, list) and all(isinstance(x, kind) and not isinstance(x, bool) for x in value)
