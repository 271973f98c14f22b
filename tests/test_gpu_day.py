"""The day on a GPU, rehearsed on the CPU: every part measures something, keeps its rows, and goes on."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="a part measures an update inside TRL")

ROOT = Path(__file__).resolve().parent.parent
DAY = ROOT / "benchmarks" / "gpu" / "day.py"


def day(*arguments):
    return subprocess.run([sys.executable, str(DAY), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


def module(path, *folders):
    """A script as a module, with what lies beside it."""
    for folder in (path.parent, *folders):
        sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.slow
def test_the_whole_day_in_miniature(tmp_path):
    done = day("--dry-run", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.glob("*.json")}
    make = module(ROOT / "docs" / "make.py")
    assert set(found) == set(make.GPU_DAY)
    for part in found.values():
        assert (part["card"], part["dry_run"], part["finished"]) == ("CPU", True, True)
        assert part["rows"]
        assert not any("failed" in row for row in part["rows"].values())
    for row in found["packing"]["rows"].values():
        assert row["gradient_gap"] < (0.05 if row["dtype"] == "bfloat16" else 1e-4)
        assert 0 < row["packed"]["seconds"] < math.inf
        assert row["packed_tokens"] < math.prod(row["group"][:2]) * sum(row["group"][2:4])
    assert all(row["ratio"] > 0 for row in found["trl"]["rows"].values())
    assert all(
        min(row[way]["tokens_per_second"] for way in ("ours", "generate")) > 0
        for row in found["speed"]["rows"].values()
    )
    assert {row["objective"] for row in found["learning"]["rows"]["gpu16"]["rows"]} == {"grpo", "lambda_grpo"}
    gaps = found["equality"]["rows"]["tiny float32"]
    assert gaps["prm"]["grad_gap"] < 1e-5 < 0.05 < gaps["lambda_grpo"]["grad_gap"]
    assert found["lab09"]["rows"]["solution"]["exit_code"] == 0
    assert found["resume"]["rows"]["tiny"]["largest_difference"] == 0
    text = make.gpu_day_text(tmp_path)
    assert "not measured yet" not in text
    assert "packed seconds" in text
    assert "end grpo" in text


def test_rows_that_are_there_are_not_measured_again(tmp_path):
    first = day("speed", "--dry-run", "--out", str(tmp_path))
    assert first.returncode == 0, first.stderr
    before = (tmp_path / "speed.json").read_bytes()
    second = day("speed", "--dry-run", "--out", str(tmp_path))
    assert second.returncode == 0
    assert "speed: " not in second.stderr
    assert json.loads(before)["rows"] == json.loads((tmp_path / "speed.json").read_bytes())["rows"]


def test_a_row_that_failed_leaves_a_sentence_and_is_tried_again(tmp_path, monkeypatch, capsys):
    script = module(DAY, ROOT / "benchmarks")

    def out_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GB")

    tried = []
    cases = {"large": out_of_memory, "small": lambda: tried.append(1) or {"seconds": 1.0}}
    monkeypatch.setitem(script.PARTS, "packing", lambda machine: iter(cases.items()))
    assert script.main(["packing", "--dry-run", "--out", str(tmp_path)]) == 1
    rows = json.loads((tmp_path / "packing.json").read_text(encoding="utf-8"))["rows"]
    assert rows["large"]["failed"].startswith("out of memory: CUDA out of memory")
    assert rows["small"] == {"seconds": 1.0}
    cases["large"] = lambda: {"seconds": 2.0}
    assert script.main(["packing", "--dry-run", "--out", str(tmp_path)]) == 0
    assert len(tried) == 1
    assert "packing: large: out of memory" in capsys.readouterr().err


def test_time_is_kept(tmp_path, monkeypatch, capsys):
    script = module(DAY, ROOT / "benchmarks")
    monkeypatch.setitem(script.PARTS, "packing", lambda machine: iter([("one", lambda: {"seconds": 1.0})]))
    assert script.main(["packing", "--dry-run", "--out", str(tmp_path), "--minutes", "1e-9"]) == 0
    assert "packing: no time left, 0 rows are there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pakcing", "--dry-run"], "gpu-day: there is no part 'pakcing': take packing, trl"),
        (["--dry-run", "--minutes", "0"], "gpu-day: --minutes must be above 0"),
    ],
)
def test_bad_input(capsys, arguments, sentence):
    script = module(DAY, ROOT / "benchmarks")
    assert script.main(arguments) == 2
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said(capsys):
    script = module(DAY, ROOT / "benchmarks")
    assert script.main([]) == 2
    assert capsys.readouterr().err == "gpu-day: torch sees no GPU here; --dry-run goes through it on the CPU\n"


def test_the_page_names_every_part_that_was_not_measured(tmp_path):
    make = module(ROOT / "docs" / "make.py")
    parts = module(ROOT / "benchmarks" / "gpu" / "parts.py", ROOT / "benchmarks").PARTS
    assert list(make.GPU_DAY) == list(parts)
    text = make.gpu_day_text(tmp_path)
    assert all(f"make gpu-day ARGS={name}" in text for name in parts)
