"""The tour behind `python -m minigrpo demo`: the tree, the theorem, the trap, in the terminal and as a report."""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path

from minigrpo import viz
from minigrpo.experiments import (
    COMPARED,
    DEFAULT_TRAP,
    failures,
    run_race,
    run_trap,
    theorem,
    trap_rows,
)
from minigrpo.files import check_writable, write_json
from minigrpo.paper import TABLE1, WORKED_EXAMPLE, WORKED_REWARDS
from minigrpo.report import Picture, Pre, report
from minigrpo.text import sparkline, table1_text, theorem_text
from minigrpo.tree import ProcessTree

TREE = (
    "Six completions of one prompt, each with one outcome reward. Completions that share a prefix share process steps: "
    "R is the mean reward of those that pass through a step (a Monte-Carlo estimate of what it is worth), A is R "
    "compared with the group, |λ| says how many pass through it.",
    "J K L M is the best completion of the group, and pushes its first step J K L up by 1.55; the two others that "
    "begin with J K L fail, and push it down by 1.11 each. Together that is 3 × A = −0.66. λ-GRPO divides by |λ|: "
    "−0.22, once.",
)
THEOREM = (
    "GRPO gives every token of a completion its outcome advantage; a process reward method gives each step its own. "
    "The paper proves that both are one objective. Here both losses and the gradient of every parameter are computed "
    "in float64 on random groups and on rollouts of Gymnasium tasks, and compared.",
    "Then each assumption is broken in turn: where the gap is not rounding, the equality is gone. A gap is the "
    "difference divided by the gradient's norm, the largest over the groups; differ is the share of groups with one "
    "above 1e-9.",
)
TRAP = (
    "A binary tree of depth 4. One path, the target, earns +1.0; paths that share its first n actions but miss it earn "
    "r_neg; all others a comfortable +0.7. Most who walk towards the target lose, so GRPO pushes the shared steps down "
    "again and again.",
    "Seeds are paired: both objectives see the same targets and draw with the same random numbers. At other learning "
    "rates and under Adam the picture changes: see python -m minigrpo table1 --controls.",
)
RACE_STORY = (
    "Why: it is a race, here in the first cell with learning rate 5. Both objectives push the target's first action "
    "down until the rest is likely enough to make it worth more than 0.7. GRPO does so 7 times faster at first, and "
    "most of its seeds are at the left edge, where the first action is hardly sampled, before that."
)
ALTS = {
    "tree": "The process tree of the worked example: nine steps in boxes from left to right, each with its reward, "
    "advantage and size, and two bars, its push under GRPO and under λ-GRPO. That on J K L is −0.66 under GRPO and "
    "−0.22 under λ-GRPO.",
    "theorem": "Largest gradient gap of each case on a logarithmic axis. Cases in which the theorem's assumptions hold "
    "lie near 1e-16, cases that break one lie between 0.1 and 10.",
    "table1": "Target frequency of GRPO and λ-GRPO in the six cells with 95% intervals and the paper's values, and "
    "below the paired difference of each cell.",
    "race": "P(first action of the target) against P(the rest), 30 seeds each: under GRPO most run to the left edge "
    "first, under λ-GRPO all turn towards the corner before.",
    "curves": "Six small plots, one a cell: target frequency over 250 updates, GRPO and λ-GRPO with 95% bands.",
}


def demo(
    out: Path, *, seeds: int = 30, json_file: Path | None = None, progress: bool = True
) -> int:
    """Walk through the worked example, the theorem and the trap; print each and write `out`/report.html.

    Args:
        out: a folder, made where it is missing.
        seeds: paired seeds of the trap.
        json_file: where the rows go too.
        progress: show bars.

    Returns: 0; 1 where a case of the theorem came out as it should not; 130 after Ctrl-C in the trap, with a report of
        the seeds that were finished.

    Raises: ValueError for fewer than two seeds; OSError where `out` can't be written.
    """
    page = out / "report.html"
    check_writable(page)
    tree = ProcessTree([completion.split() for completion in WORKED_EXAMPLE], WORKED_REWARDS)
    _say("1. Every group is a tree of process steps", TREE)
    print(tree)

    _say("2. GRPO = PRM: the theorem runs", THEOREM)
    gaps = list(theorem(groups=60, progress=progress))
    print(theorem_text(gaps))

    _say("3. The trap: a race, and λ-GRPO", TRAP)
    hits = run_trap(DEFAULT_TRAP, COMPARED, seeds, progress=progress)
    rows, differences = trap_rows(hits, DEFAULT_TRAP)
    print(
        f"{table1_text(rows, differences)}\n\nFrom the first update to the last, mean of cells and seeds (▁ 0, █ 1):"
    )
    for key, hit in hits.items():
        print(f"{viz.NAMES[key]:>6}  {sparkline(hit.mean(dim=(0, 1)).tolist())}")

    if json_file:
        write_json(json_file, {"theorem": gaps, "rows": rows, "differences": differences})
    sections = [
        (
            "Every group is a tree of process steps",
            [*TREE, Picture(viz.plot_tree(tree), ALTS["tree"]), Pre(str(tree))],
        ),
        (
            "GRPO = PRM: the theorem runs",
            [*THEOREM, Picture(viz.plot_theorem(gaps), ALTS["theorem"]), Pre(theorem_text(gaps))],
        ),
        (
            "The trap: a race, and λ-GRPO",
            [
                *TRAP,
                Picture(viz.plot_table1(rows, differences), ALTS["table1"]),
                Pre(table1_text(rows, differences)),
                RACE_STORY,
                Picture(viz.plot_race(run_race()), ALTS["race"]),
                Picture(viz.plot_trap_curves(hits, tuple(TABLE1)), ALTS["curves"]),
            ],
        ),
    ]
    report(page, sections, "GRPO is secretly a process reward model")
    print(f"\nThe same with figures: {page.resolve().as_uri()}")
    if rows[0]["seeds"] < seeds:
        print(f"Interrupted: {rows[0]['seeds']} of {seeds} seeds were finished.", file=sys.stderr)
        return 130
    return 1 if failures(gaps) else 0


def _say(heading: str, story: tuple[str, ...]) -> None:
    """Print the heading of one stop of the tour and what is to be seen there."""
    width = min(100, shutil.get_terminal_size().columns)
    paragraphs = (textwrap.fill(paragraph, width) for paragraph in story)
    print("\n\n".join([f"\n{heading}\n{'═' * len(heading)}", *paragraphs, ""]), flush=True)
