"""Claims as functions: the paper's `theorem` (the equality and where it breaks), `table1` (the trap), `overlap`; and
`expectation`, what GRPO and λ-GRPO do on average, which is ours.

Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154.
"""

from minigrpo.experiments.expectation import (
    closed_form,
    draw_tree,
    expectation,
    expected_update,
    failed_expectations,
    harmonic_utility,
)
from minigrpo.experiments.overlap import OVERLAP_RUNS, overlap
from minigrpo.experiments.theorem import (
    ASSUMPTIONS,
    DIFFERENT,
    TOLERANCE,
    failures,
    is_broken,
    outcome_and_process_loss,
    theorem,
)
from minigrpo.experiments.trap import (
    ADAM_SWEEP,
    COMPARED,
    DEFAULT_TRAP,
    LANGUAGE_POLICIES,
    LEARNING_RATES,
    MATCHED,
    POOLED,
    RACE,
    RACE_CELL,
    SWEEP,
    TrapConfig,
    check_trap,
    pool,
    race_threshold,
    run_race,
    run_trap,
    table1,
    table1_controls,
    train_trap,
    trap_rows,
)

__all__ = [
    "ADAM_SWEEP",
    "ASSUMPTIONS",
    "COMPARED",
    "DEFAULT_TRAP",
    "DIFFERENT",
    "LANGUAGE_POLICIES",
    "LEARNING_RATES",
    "MATCHED",
    "OVERLAP_RUNS",
    "POOLED",
    "RACE",
    "RACE_CELL",
    "SWEEP",
    "TOLERANCE",
    "TrapConfig",
    "check_trap",
    "closed_form",
    "draw_tree",
    "expectation",
    "expected_update",
    "failed_expectations",
    "failures",
    "harmonic_utility",
    "is_broken",
    "outcome_and_process_loss",
    "overlap",
    "pool",
    "race_threshold",
    "run_race",
    "run_trap",
    "table1",
    "table1_controls",
    "theorem",
    "train_trap",
    "trap_rows",
]
