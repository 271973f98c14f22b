"""The benchmarks run, say what they measured, and benchmarks/README.md shows what their committed JSON holds."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minigrpo.llm import forward

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.glob("[a-z]*.py"))
MACHINE = {"torch", "python", "cpus", "threads", "cpu_time_is", "load_1min_at_start"}
ROWS = {
    "step_sizes": {"P", "G", "T", "seconds", "peak_bytes", "times_slower"},
    "objective_cost": {"task", "policy", "objective", "update", "added_share", "whole_update_share"},
    "table1_speed": {"runs", "measured_alone", "largest_difference", "seconds", "times_faster"},
    "llm_speed": {"P", "G", "T", "model", "updates_per_minute", "times_faster", "share", "lambda_added_share"},
    "trap_update": {"policy", "updates", "seconds", "ratio", "share"},
    "packing": {"P", "G", "L", "T", "S", "model", "seconds", "ratio", "auto", "gradient_gap", "peak_mb"},
    "trl_packing": {"P", "G", "L", "T", "S", "model", "seconds", "ratio", "gradient_gap", "peak_mb"},
}
HAS_TRL = importlib.util.find_spec("trl") is not None
RUN = [name for name in ROWS if HAS_TRL or name not in ("llm_speed", "trl_packing")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every script's --quick run, all at once: what it printed and what it wrote."""
    folder = tmp_path_factory.mktemp("benchmarks")
    committed = {file: file.read_bytes() for file in (BENCHMARKS / "results").glob("*.json")}
    running = {
        name: subprocess.Popen(
            [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--json", folder / f"{name}.json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONUTF8": "1"},
            encoding="utf-8",
        )
        for name in RUN
    }
    ended = {name: (*process.communicate(), process.returncode) for name, process in running.items()}
    assert {name: error for name, (_, error, code) in ended.items() if code} == {}
    assert committed == {file: file.read_bytes() for file in committed}, "--quick wrote over the committed results"
    files = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ended}
    return {name: (ended[name][0], files[name]) for name in ended}


def test_every_script_is_tested():
    assert {script.stem for script in SCRIPTS} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_quick_run_has_its_rows(results, name):
    if name not in RUN:
        pytest.skip(f"{name} measures against TRL, which is not installed")
    text, result = results[name]
    assert result["benchmark"] == name
    assert result["quick"] is True
    assert set(result["machine"]) == MACHINE
    assert result["rows"]
    assert all(ROWS[name] <= set(row) for row in result["rows"])
    assert text.startswith("| ")


def test_llm_speed_without_trl():
    code = "import sys, runpy; sys.modules['trl'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, "llm_speed.py", "--quick"], cwd=BENCHMARKS, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "llm_speed: measures against TRL, which is not installed: pip install trl\n"


def test_constants_of_the_cost_model_are_the_fitted_ones():
    result = json.loads((BENCHMARKS / "results" / "packing.json").read_text(encoding="utf-8"))
    assert pytest.approx(result["fit"]["attention"], rel=0.05) == forward.ATTENTION_FLOP
    assert pytest.approx(result["fit"]["pass"], rel=0.05) == forward.PASS_TOKENS
    assert pytest.approx(result["fit"]["block"], rel=0.05) == forward.BLOCK_UNIT
    for row in result["rows"]:
        assert row["auto"] == "padded" or row["ratio"][row["auto"]]["median"] > 0.95


def test_memory_is_that_of_the_largest_tensors(results):
    """`same_prefix` holds int64 (G, G, T), its bool copy and more; `step_sizes` a few int64 (G, T)."""
    for row in results["step_sizes"][1]["rows"]:
        G, T = row["G"], row["T"]
        assert 9 * G * G * T <= row["peak_bytes"]["same_prefix"] < 40 * G * G * T
        assert 24 * G * T <= row["peak_bytes"]["step_sizes"] < 160 * G * T


@pytest.mark.parametrize("name", ROWS)
def test_committed_results_are_full_runs(name):
    result = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert result["quick"] is False
    assert all(ROWS[name] <= set(row) for row in result["rows"])


def test_readme_shows_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import _common

    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert [name for _, name, _ in _common.MARKED.findall(readme)] == list(ROWS)
    assert _common.fill(readme) == readme
