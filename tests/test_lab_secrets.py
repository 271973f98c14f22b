"""A diagnosis is checked in its form alone, and files are an exercise of their own kind in the manifest."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from grader.check import attempt, public_report
from grader.labs import find_exercise, lab08
from grader.labs.lab08 import CAUSES, RUNS
from grader.release import release
from grader.source import entry, read_source

ROOT = Path(__file__).parents[1]
SOLUTIONS = ROOT / "solutions"
TRUE = lab08.truth()


def test_the_public_check_of_a_diagnosis_tells_neither_right_nor_wrong():
    exercise = find_exercise("lab08.1")
    shifted = dict(zip(TRUE, [*list(TRUE.values())[1:], TRUE["A"]], strict=True))
    reports = [public_report(exercise, lambda answer=answer: answer) for answer in (TRUE, shifted)]
    assert reports[0] == reports[1]
    assert reports[0][1]
    lines, passed = public_report(exercise, lambda: TRUE | {"C": "bad luck"})
    assert not passed
    assert not any(cause in line for cause in CAUSES for line in lines if "got" not in line)


def test_each_run_is_a_point_of_its_own():
    exercise = find_exercise("lab08.1")
    answer = TRUE | {"B": "rate too small"}
    earned = [
        part.points * attempt(exercise, lambda: answer, exercise.case(part, 5, 0)).passed for part in exercise.parts
    ]
    assert earned == [1, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (dict.fromkeys("ABCDEF", []), "the cause of each run must be one of the keys of CAUSES, got []"),
        (dict.fromkeys("ABCDEF", {"no gradient": 1}), "the cause of each run must be one of the keys of CAUSES"),
        (dict.fromkeys("ABCDEF"), "the cause of each run must be one of the keys of CAUSES, got None"),
        (dict.fromkeys("abcdef", "no gradient"), "with the keys A, B, C, D, E, F, got a, b, c, d, e, f"),
        (dict.fromkeys("ABCDE", "no gradient"), "with the keys A, B, C, D, E, F, got A, B, C, D, E"),
        (["no gradient"] * 6, "must be a dict with the keys A, B, C, D, E, F, got ['no gradient'"),
        (None, "must be a dict"),
    ],
)
def test_a_diagnosis_of_the_wrong_form_is_wrong_in_every_run_and_named_by_its_form(answer, said):
    exercise = find_exercise("lab08.1")
    for part in exercise.parts:
        found = attempt(exercise, lambda: answer, exercise.case(part, 5, 0))
        assert found.error is None
        assert said in found.wrong
    lines, passed = public_report(exercise, lambda: answer)
    assert not passed
    assert any(said in line for line in lines)
    assert not any("another bug" in line for line in lines)


def test_the_students_archive_has_the_runs_and_not_the_truth(tmp_path):
    """The public check works there; what is in the file would be six points."""
    release(ROOT, tmp_path / "course.zip")
    with zipfile.ZipFile(tmp_path / "course.zip") as archive:
        assert not [name for name in archive.namelist() if "truth" in name]
        archive.extractall(tmp_path)
        texts = [archive.read(name).decode() for name in archive.namelist() if "grader/labs/lab08." in name]
    assert len(texts) == 2
    assert not [text for text in texts if re.search(r"TRUTH|\bA\b.{,9}" + TRUE["A"], text)]
    program = (
        "from grader import check; from grader.labs.lab08 import CAUSES, RUNS; assert len(RUNS) == 7; "
        "check('lab08.1', lambda: dict.fromkeys('ABCDEF', next(iter(CAUSES))))"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "course", capture_output=True, text=True)
    assert found.stdout.startswith("lab08.1: "), found.stderr
    assert "fail" not in found.stdout


def test_nothing_that_the_students_have_says_which_run_has_which_bug():
    """No function of a bug is bound to a run's name, and the rows are numbers alone."""
    assert all(isinstance(value, float) for rows in RUNS.values() for row in rows for value in row.values())
    lines = Path(lab08.__file__).read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines for run, cause in TRUE.items() if f'"{run}"' in line and cause in line]


def test_nobody_is_graded_without_the_truth(monkeypatch, tmp_path):
    exercise = find_exercise("lab08.1")
    monkeypatch.setattr(lab08, "TRUTH", tmp_path / "truth.json")
    assert public_report(exercise, lab08.diagnosis)[1]
    with pytest.raises(FileNotFoundError, match="truth"):
        exercise.case(exercise.parts[0], 5, 0)


def test_the_recorded_runs_are_those_of_the_labs_script():
    recorded = json.loads(lab08.RECORDED.read_text(encoding="utf-8"))
    assert {len(rows) for rows in RUNS.values()} == {200}
    for run, columns in lab08.record(updates=12).items():
        for name, values in columns.items():
            assert values == pytest.approx(recorded[run][name][:12], rel=2e-3, abs=1e-9), (run, name)


def test_the_manifest_knows_files_from_code_and_writing():
    rows = entry(read_source(SOLUTIONS / "lab09_language_model.py"))["exercises"]
    assert [row["kind"] for row in rows] == ["code", "code", "artifact", "written", "written"]
    assert rows[2]["files"] == ["adapter_model.safetensors", "adapter_config.json", "metrics.jsonl"]
