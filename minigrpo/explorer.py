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
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    value = json.dumps({**data, "caption": caption}, allow_nan=False).replace("<", "\\u003c")
    return re.sub(
        r"\{\{(\w+)\}\}",
        lambda match: {"policy": f"'sha256-{digest}'", "data": value}[match[1]],
        template,
    )


def frame(content: str, lines: int) -> str:
    """Put a page into a frame that can run its script and reach nothing else.

    Args: content: the page; lines: of its longer view, rows or steps, from which the height is guessed.
    """
    style = f"width: 100%; height: {min(520 + 56 * lines, 1100)}px; border: 0; resize: vertical"
    title = "Explorer of a group of completions"
    return f'<iframe title="{title}" sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(content)}"></iframe>'
