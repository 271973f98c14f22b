"""The pages say what the data and the code say: blocks, numbers, links, commands, the README's code."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minigrpo.cli import build_parser
from minigrpo.llm import cli as llm
from minigrpo.text import failures

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_block_of_the_results_is_what_its_data_give(make):
    texts = [path.read_text(encoding="utf-8") for path in make.PAGES]
    assert set(re.findall(r"<!-- (\w+) -->\n```text\n", "".join(texts))) == set(make.blocks())
    for text in texts:
        assert make.page(text) == text, "run python docs/make.py"


def test_prose_on_the_trap_of_a_language_model_agrees_with_the_data(make):
    """Runs found and decided, which the page's tables do not add up."""
    runs = {}
    for row in make.trap_curves("trap_smollm2"):
        run = tuple(row[name] for name in ("learning_rate", "n", "r_neg", "objective", "seed"))
        runs.setdefault(run, []).append(row["p_target"])
    found = {
        (objective, rate): [p[-1] > 0.5 for run, p in runs.items() if (run[3], run[0]) == (objective, rate)]
        for objective in ("grpo", "lambda_grpo")
        for rate in (1e-5, 2e-5, 5e-5)
    }
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").replace("\n", " ")
    first, second, third = (sum(found["lambda_grpo", rate]) for rate in (1e-5, 2e-5, 5e-5))
    assert f"in {first} of {len(found['grpo', 1e-5])} runs at 0.00001, {second} at 0.00002 and {third} of 36" in text
    first, second, third = (sum(found["grpo", rate]) for rate in (1e-5, 2e-5, 5e-5))
    assert f"GRPO in {first}, {second} and {third}." in text
    told = sum((p[min(10, len(p) - 1)] > p[0]) == (p[-1] > 0.5) for p in runs.values())
    assert f"in {told} of {len(runs)} runs the target is found exactly if" in text
    assert sum(len(p) == 251 for p in runs.values()) == 10  # "Ten went through all 250 updates"
    assert sum(max(p) > 0.9 and p[-1] < 0.5 for p in runs.values()) == 2  # "Two runs … lost the target again"
    one = [run for run, p in runs.items() if run[:2] == (1e-5, 1) and p[-1] > 0.5]
    assert [sum(run[3] == objective for run in one) for objective in ("grpo", "lambda_grpo")] == [30, 23]


def test_prose_on_pass_at_k_agrees_with_the_data(make):
    """GRPO's line between 250 and 400 updates, at λ-GRPO's pass@1; and the settings of the trap in language."""
    rows = make.result("passk_tiny")["rows"]

    def mean(objective, updates, name):
        own = [row[name] for row in rows if (row["objective"], row["updates"]) == (objective, updates)]
        assert len(own) == 10
        return sum(own) / len(own)

    (x0, y0), (x1, y1) = ((mean("grpo", n, "pass@1"), mean("grpo", n, "pass@64")) for n in (250, 400))
    x, y = mean("lambda_grpo", 400, "pass@1"), mean("lambda_grpo", 400, "pass@64")
    assert (round(x, 3), round(y, 3), round(y0 + (x - x0) / (x1 - x0) * (y1 - y0), 3)) == (0.854, 0.991, 0.992)

    gaps = [gap for gap in make.result("passk_traps")["differences"] if gap["k"] == 1]
    assert len(gaps) == 7
    assert [gap["temperature"] for gap in gaps if gap["ci_high"] >= 0] == [0.7]  # the undecided one
    mild = {gap["group_size"]: gap["mean"] for gap in gaps if gap["task"].endswith("mild") and gap["temperature"] == 1}
    assert {G: round(mean, 2) for G, mean in mild.items()} == {4: -0.02, 8: -0.06, 16: -0.15}


def test_prose_of_the_results_agrees_with_the_data(make):
    """The numbers that the prose of docs/results.md and README.md draws from the tables."""
    table1 = make.result("table1")
    assert {row["seeds"] for row in table1["rows"]} == {100}
    assert min(row["ci_low"] for row in table1["differences"]) > 0
    found = {
        objective: [round(row["mean"], 2) for row in table1["rows"] if row["objective"] == objective]
        for objective in ("grpo", "lambda_grpo")
    }
    assert (min(found["lambda_grpo"]), max(found["lambda_grpo"])) == (0.89, 0.97)
    assert (min(found["grpo"]), max(found["grpo"])) == (0.48, 0.60)

    pooled = [row for row in table1["controls"] if row["r_neg"] is None]
    sweep = [row for row in pooled if row["control"] == "learning rates"]

    def best(n, objective):
        return max((round(r["mean"], 2), r["lr"]) for r in sweep if r["n"] == n and r.get("objective") == objective)[0]

    assert [best(n, o) for n in (1, 2) for o in ("grpo", "lambda_grpo")] == [0.63, 0.99, 0.92, 1.00]
    gap = {(r["n"], r["lr"]): r for r in sweep if r.get("difference") == "lambda_grpo − grpo"}
    assert all(row["ci_low"] > 0 for (n, _), row in gap.items() if n == 1)
    assert gap[2, 1.0]["ci_low"] < 0 < gap[2, 1.0]["ci_high"]
    assert gap[2, 0.5]["ci_high"] < 0  # GRPO leads
    assert round(gap[2, 0.5]["mean"], 2) == -0.16
    assert sum(row["ci_low"] > 0 for (n, _), row in gap.items() if n == 2) == 6
    assert [round(f(row["mean"] for (n, _), row in gap.items() if n == 1), 2) for f in (min, max)] == [0.19, 0.59]
    matched = {(r["n"], r["lr"]): r["ci_low"] > 0 for r in sweep if r.get("difference") == "grpo_matched − grpo"}
    assert {key for key, helps in matched.items() if helps} == {(1, 50.0), (1, 100.0), (2, 20.0), (2, 50.0), (2, 100.0)}
    adam = {(r["n"], r["lr"]): r["mean"] for r in pooled if r["control"] == "tabular, adam" and "difference" in r}
    assert all(round(abs(adam[n, lr]), 2) <= 0.01 for n in (1, 2) for lr in (0.03, 0.1))
    for name in ("table1_transformer_adam", "table1_mlp_adam"):
        assert min(row["mean"] for row in make.result(name)["differences"]) > 0
    clear = {0.0003: 0, 0.001: 0, 0.003: 0}
    for row in make.result("table1_transformer_adam")["differences"]:
        clear[row["lr"]] += row["ci_low"] > 0
    assert clear[0.0003] == clear[0.001] == 6 > clear[0.003]


def test_prose_on_smollm2_agrees_with_the_data(make):
    ends = {}
    for name in ("smollm2", "smollm2_overlap"):
        compared = make.result(f"llm_compare_{name}")
        assert len({row["seed"] for row in compared["rows"]}) == 5
        found = {row["measure"]: row for row in compared["differences"] if row["at"] == "best rates"}
        ends[name] = [round(found["last"][key], 2) for key in ("mean", "ci_low", "ci_high")]
        assert found["updates_to_90"]["ci_low"] <= 0 <= found["updates_to_90"]["ci_high"]
    assert ends == {"smollm2": [0.03, -0.04, 0.10], "smollm2_overlap": [-0.07, -0.11, -0.02]}


def test_committed_theorem_holds(make):
    rows = make.result("theorem")["rows"]
    assert len(rows) > 20
    assert failures(rows) == []


def test_prose_on_language_models_agrees_with_the_data(make):
    compared = make.result("llm_compare_tiny")
    ends = {}
    for row in compared["rows"]:
        ends.setdefault((row["objective"], row["learning_rate"]), []).append(row["last"])
    assert {len(seeds) for seeds in ends.values()} == {5}
    best = {o: max((sum(v) / 5, lr) for (name, lr), v in ends.items() if name == o) for o in ("grpo", "lambda_grpo")}
    assert {o: (round(end, 2), lr) for o, (end, lr) in best.items()} == {
        "grpo": (0.92, 5e-5),
        "lambda_grpo": (0.90, 5e-5),
    }
    found = {(row["at"], row["learning_rates"][0], row["measure"]): row for row in compared["differences"]}
    end, soon = found["best rates", 5e-5, "last"], found["best rates", 5e-5, "updates_to_90"]
    assert [round(end[key], 2) for key in ("mean", "ci_low", "ci_high")] == [-0.02, -0.03, -0.01]
    assert [round(soon[key]) for key in ("mean", "ci_low", "ci_high")] == [72, 32, 108]
    later = {lr: found["each rate", lr, "updates_to_90"]["ci_low"] > 0 for lr in (1.25e-5, 2.5e-5, 5e-5, 1e-4)}
    assert later == {1.25e-5: True, 2.5e-5: False, 5e-5: True, 1e-4: False}
    largest = found["each rate", 1e-4, "last"]
    assert largest["ci_low"] < 0 < largest["ci_high"]
    grpo, prm = ([*run["curve"]] for run in make.read_curves([make.CURVES["prm"]]))
    assert grpo == prm
    assert len(grpo) == 41


def test_readme_names_the_settings_of_table1():
    text = " ".join(TEXTS["README.md"].split())
    assert "tabular policy under SGD with learning rate 20" in text


def test_readme_code_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)[1]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "J K L" in run.stdout


def test_packing_code_runs():
    code = re.search(r"```python\n(.*?)```", TEXTS["docs/packing.md"], re.DOTALL)[1]
    code += "\nassert sum(weight.grad.norm() for weight in model.parameters()) > 0.1"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", cwd=ROOT)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    prose = re.sub(r"```.*?```", "", TEXTS[name], flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)", prose)
    local = [link for link in links if not link.startswith("https://")]
    assert [link for link in local if not (ROOT / name).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("name", TEXTS)
def test_every_figure_has_words(name):
    assert [alt for alt in re.findall(r"!\[([^\]]*)\]", TEXTS[name]) if len(alt) < 30] == []


def test_commands_in_the_pages_exist():
    found = [
        command
        for text in TEXTS.values()
        for command in re.findall(r"`(?:\S*python3?) -m minigrpo ([^`\n]*)`", text)
        if command.split()[0].isalnum()
    ]
    assert len(found) > 8
    for command in found:
        first, *rest = shlex.split(command)
        if first == "llm":
            llm.build_parser().parse_args(rest)
        else:
            build_parser().parse_args([first, *rest])


def test_readme_tree_names_every_module():
    tree = re.search(r"```text\n(minigrpo/\n.*?)```", TEXTS["README.md"], re.DOTALL)[1]
    modules = {path.name for path in (ROOT / "minigrpo").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert modules <= set(re.findall(r"\w+\.py", tree))


def test_results_are_json_that_any_reader_takes():
    for path in (ROOT / "docs" / "results").glob("*.json"):
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
        assert value["rows"]
        assert value["finished"]


def table_keys(section):
    """The names in the first column of a page's table, by the section's heading."""
    text = TEXTS["docs/metrics.md"].partition(f"## {section}\n")[2].partition("\n## ")[0]
    first = (line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    return {name for cell in first for name in re.findall(r"`(\w+)`", cell)}


def test_the_page_on_metrics_names_what_runs_write(tmp_path):
    """Each column and key, and no other; with a KL term, and without."""
    from minigrpo.llm.runs import read_groups, read_metrics
    from minigrpo.llm.settings import Settings
    from minigrpo.llm.training import train as train_llm
    from minigrpo.trainer import Config, train

    small = {"prompts": 2, "group_size": 2, "max_new_tokens": 6, "eval_size": 4, "train_size": 8}
    for beta in (0.0, 0.1):
        train_llm(Settings(updates=2, eval_every=2, beta=beta, **small), tmp_path / f"{beta}", progress=False)
        first, second, last = read_metrics(tmp_path / f"{beta}")
        every, trained, evaluated = (
            table_keys(f"metrics.jsonl: {rows}")
            for rows in ("every row", "rows with an update after them", "rows that were evaluated")
        )
        assert set(second) == every | trained - ({"kl"} if beta == 0 else set())
        assert set(last) == every | evaluated
        assert set(first) == set(second) | set(last)
    assert set(read_groups(tmp_path / "0.0")[0]) == table_keys("rollouts.jsonl")
    toy = TEXTS["docs/metrics.md"].partition("## Toy runs\n")[2].partition(". They mean")[0]
    (row,) = train(Config(updates=1), progress=False).rows
    assert set(row) == set(re.findall(r"`(\w+)`", toy)) - {"config"}


def test_update_lengths_are_measured(tmp_path):
    """Under AdamW the first update of every weight that has a gradient is the learning rate, whatever its length."""
    file = tmp_path / "lengths.json"
    command = [sys.executable, ROOT / "docs" / "update_length.py", "--updates", "2", "--seeds", "1", "--json", file]
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads(file.read_text(encoding="utf-8"))
    assert [row["objective"] for row in result["rows"]] == ["grpo", "lambda_grpo"]
    assert 0.9 < result["ratio"] < 1.1
    assert 0 < result["rows"][0]["mean_length"] < 5e-5 * 900_000**0.5


def test_what_runs_warn_of_is_explained():
    """Each `docs/troubleshooting.md#…` in the package is a heading of that page, and each warning names one."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = {line.lstrip("# ").replace(" ", "-").lower() for line in page.splitlines() if line.startswith("### ")}
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "minigrpo").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"(?:\{HELP\}|troubleshooting\.md)#([\w-]+)", text)}
    assert len(named) >= 5
    assert named - headings == set()
