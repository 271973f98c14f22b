"""The page about a class: counts by hand, escaping, what waits, and lab 10's pooled comparison."""

from __future__ import annotations

import html.parser
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grader.class_report import plot_differences, plot_points, pooled, records_of
from grader.cli import main
from grader.feedback import final_grades, write_run
from grader.grade import load_manifest
from grader.labs import exercises
from grader.results import ExerciseResult, PartResult, Result, read_result, write_result
from minigrpo.files import write_text
from minigrpo.stats import interval

ROOT = Path(__file__).parents[1]
MANIFEST = load_manifest(ROOT / "labs")
MISTAKES = {mistake.name: mistake.hint for exercise in exercises("lab02") for mistake in exercise.mistakes}
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def _in_the_course(monkeypatch):
    monkeypatch.chdir(ROOT)


def submission(student, lab="lab02", earned=None, mistakes=None, records=(), answer="Yes.", accepted=True, **more):
    """A made-up result: of each exercise one part, wholly earned unless `earned` says less."""
    earned, mistakes, rows = earned or {}, mistakes or {}, []
    for row in MANIFEST[lab]["exercises"]:
        name, points = row["id"], row["points"]
        if row["kind"] == "written":
            rows.append(ExerciseResult(name, "written", points, 0, answer=answer))
            continue
        own = earned.get(name, points)
        feedback = mistakes.get(name, "" if own == points else "written beforehand")
        part = PartResult("all cases", points, own, own == points, feedback, name in mistakes)
        if row["kind"] == "artifact":
            part = replace(part, records=tuple(records), passed=accepted)
        rows.append(ExerciseResult(name, row["kind"], points, own, (part,)))
    points = sum(row.points for row in rows)
    head = {"student": student, "lab": lab, "sha256": "s1", "seed": 5, "isolation": "bubblewrap", "version": "1"}
    total = sum(row.earned for row in rows)
    return Result(**head | {"problem": None, "earned": total, "points": points, "exercises": tuple(rows)} | more)


def page(folder: Path, *results: Result) -> str:
    """The page about such a class."""
    for result in results:
        write_result(result, folder)
    assert main(["report", str(folder), "--out", str(folder / "class.html")]) == 0
    return (folder / "class.html").read_text("utf-8")


class Tables(html.parser.HTMLParser):
    """The cells of every table, row after row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.open = True

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1] += data


def test_a_class_by_hand(tmp_path):
    wrong = {"lab02.2": MISTAKES["equal tokens"]}
    text = page(
        tmp_path,
        submission("anna"),
        submission("boris", earned={"lab02.2": 0}, mistakes=wrong),
        submission("chen", earned={"lab02.2": 0, "lab02.3": 0}, mistakes=wrong),
        submission("dora", problem="the notebook is damaged"),
    )
    rows = Tables(text).rows
    assert "4 students have handed in; 3 graded; 1 that can&#x27;t be read" in text
    assert ["dora", "the notebook is damaged"] in rows
    assert ["lab02.1", "all cases", "4", "3 of 3", "100%"] in rows
    assert ["lab02.2", "all cases", "5", "1 of 3", "33%"] in rows
    assert ["lab02.2", "Sizes, on tensors", "5", "1.7", "1 of 3", "33%"] in rows
    assert ["lab02.4", "Two questions", "2", "–", "0 of 0", "–"] in rows
    assert ["lab02.2", "equal tokens", "2", MISTAKES["equal tokens"]] in rows
    assert "<p>lab02.4, without a mark (3): anna, boris, chen.</p>" in text
    assert "3 students, mean 7.7, median 7 of 16 points. 3 have answers without a mark" in text
    assert "Histogram of the points of 3 students, of 16: 1 with 4, 1 with 7, 1 with 12; mean 7.7, median 7." in text
    assert "against" not in text  # no comparison outside lab 10


def test_marks_count_and_marks_to_look_at_again_are_named(tmp_path):
    write_text(tmp_path / "manual" / "anna.yaml", "submission: s0\nexercises: {lab02.4: {points: 2}}\n")
    text = page(tmp_path, submission("anna"), submission("boris", answer=None))
    rows = Tables(text).rows
    assert [row[-4:] for row in rows if row[0] == "lab02.4" and len(row) == 6] == [["2", "1.0", "1 of 2", "50%"]]
    assert "<p>lab02.4, mark for an earlier submission: look again (1): anna.</p>" in text
    assert "1 has answers without a mark" in text


def test_the_most_common_mistake_stands_first_and_counts_a_student_once(tmp_path):
    hints = MISTAKES["equal tokens"], MISTAKES["padding counted"]
    common = [submission(name, earned={"lab02.2": 0}, mistakes={"lab02.2": hints[1]}) for name in "ab"]
    rare = submission("c", earned={"lab02.2": 0}, mistakes={"lab02.2": hints[0]})
    twice = common[0].exercises[1]
    both = replace(twice, parts=(twice.parts[0], replace(twice.parts[0], name="again")))
    rows = list(common[0].exercises)
    rows[1] = both
    text = page(tmp_path, replace(common[0], exercises=tuple(rows)), common[1], rare)
    found = [row[2:] for row in Tables(text).rows if len(row) == 4 and row[0] == "lab02.2" and row[2] in "12"]
    assert found[:2] == [["2", hints[1]], ["1", hints[0]]]


def test_failures_of_the_grader_are_told_with_their_reason(tmp_path):
    broken = submission("anna")
    rows = list(broken.exercises)
    rows[1] = replace(rows[1], failed="ZeroDivisionError: ours", earned=0)
    lost = submission("boris", problem="the grader failed on this submission", failed="OSError: disk")
    text = page(tmp_path, replace(broken, exercises=tuple(rows)), lost, submission("chen"))
    found = Tables(text).rows
    assert ["anna", "lab02.2", "ZeroDivisionError: ours"] in found
    assert ["boris", "all of it", "OSError: disk"] in found
    assert "1 graded; 0 that can&#x27;t be read; 2 without a grade, as the grader failed" in text
    assert ["lab02.2", "all cases", "5", "1 of 1", "100%"] in found  # nobody loses by our fault


def test_nothing_a_student_wrote_is_markup(tmp_path):
    name = HOSTILE.replace("/", "∕")
    rows = list(submission(name).exercises)
    rows[0] = replace(rows[0], parts=(PartResult(HOSTILE, 4, 0, False, HOSTILE, True),), failed=None)
    rows[1] = replace(rows[1], failed=HOSTILE)
    text = page(
        tmp_path,
        replace(submission(name, answer=HOSTILE), exercises=tuple(rows)),
        submission("b" + name, problem=HOSTILE),
        submission("c" + name, problem=HOSTILE, stray=True),
    )
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 5
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")


@pytest.mark.parametrize("make", [lambda out: None, lambda out: (out / "auto").mkdir(), lambda out: write_run(out, [])])
def test_a_folder_without_grades_is_one_sentence(tmp_path, capsys, make):
    make(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("grader report: no grades in")
    assert said.count("\n") == 1
    assert not (tmp_path / "class.html").exists()


def test_submissions_that_are_all_unreadable_make_a_page(tmp_path):
    text = page(tmp_path, submission("anna", problem="damaged"), submission("x", problem="no notebook", stray=True))
    assert "1 student has handed in; 0 graded" in text
    assert "Nobody has a grade yet." in text
    assert "No notebook, and perhaps no student&#x27;s: x." in text


def test_who_is_gone_is_left_out_with_a_word(tmp_path):
    write_run(tmp_path, [submission("anna")])
    text = page(tmp_path, submission("anna"), submission("boris"))
    assert "1 student has handed in" in text
    assert "<p>left out, not among the submissions of the last grading: boris.</p>" in text


def test_a_roster_names_who_is_missing(tmp_path, capsys):
    roster = write_text(tmp_path / "r.csv", "id,name\n1,Anna Lee\n2,Bo <b>Berg</b>\n3,Chen Wu\n")
    write_result(submission("Anna Lee"), tmp_path)
    command = ["report", str(tmp_path), "--roster", str(roster)]
    assert main(command) == 0
    text = (tmp_path / "class.html").read_text("utf-8")
    assert "of the roster, 2 have not: Bo &lt;b&gt;Berg&lt;/b&gt;; Chen Wu." in text
    write_result(submission("nobody"), tmp_path)
    assert main(command) == 2
    assert "no one row for 'nobody'" in capsys.readouterr().err
    assert "nobody" in (tmp_path / "names.csv").read_text("utf-8")


@pytest.mark.parametrize("lab", sorted(MANIFEST))
def test_every_lab_has_a_page(tmp_path, lab):
    full = submission("anna", lab)
    assert f"1 student, mean {full.earned:.1f}" in page(tmp_path, full)


def test_the_histogram_counts_everybody_and_labels_its_axes(tmp_path):
    for number in range(5):
        write_result(submission(f"s{number}", earned={"lab02.2": number}, answer=number % 2 and "x" or None), tmp_path)
    figure, heights = plot_points(final_grades(tmp_path))
    assert heights == {7: 1, 8: 1, 9: 1, 10: 1, 11: 1}
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("points, of 16", "students")
    assert sum(bar.get_height() for bar in axes.patches) == 5


# Lab 10


def runs(*pairs, first_seed=0):
    """Records of pairs (accuracy of GRPO, of λ-GRPO)."""
    found = []
    for seed, (grpo, other) in enumerate(pairs, start=first_seed):
        found.append({"objective": "grpo", "seed": seed, "accuracy": grpo})
        found.append({"objective": "lambda_grpo", "seed": seed, "accuracy": other})
    return found


def of(student, records):
    return [{"student": student, **record} for record in records]


def test_pairs_are_averaged_within_a_student():
    records = of("anna", runs((0.2, 0.3), (0.4, 0.4), (0.5, 0.8))) + of("boris", runs((0.6, 0.5)))
    records += of("chen", runs((0.1, 0.2))[:1]) + [{"student": "dora"} | runs((0.1, 0.2), first_seed=9)[1]]
    found = pooled(records[::-1])
    assert {name: round(value, 12) for name, value in found.differences.items()} == {
        "boris": -0.1,
        "anna": round(0.4 / 3, 12),
    }
    assert found.pairs == {"anna": 3, "boris": 1}
    assert sorted(found.alone) == ["chen", "dora"]


def test_a_seed_without_its_partner_makes_no_pair():
    found = pooled(of("anna", [*runs((0.2, 0.4)), *runs((0.9, 0.9), first_seed=5)[:1]]))
    assert found.pairs == {"anna": 1}
    assert found.differences["anna"] == pytest.approx(0.2)


def test_the_same_numbers_count_once():
    same = runs((0.2, 0.4), (0.1, 0.4))
    found = pooled([*of("anna", same), *of("boris", same), *of("chen", runs((0.2, 0.4), (0.1, 0.5)))])
    assert list(found.differences) == ["anna", "chen"]
    assert found.repeated == {"boris": "anna"}


def test_two_runs_of_one_objective_and_seed_make_no_pair():
    found = pooled([*of("anna", [*runs((0.1, 0.2)), *runs((0.1, 0.2))]), *of("boris", runs((0.1, 0.2)))])
    assert found.alone == ("anna",)
    assert list(found.means) == ["boris"]


def test_a_record_that_lacks_a_key_is_said(tmp_path, capsys):
    write_result(submission("anna", "lab10", records=[{"objective": "grpo", "seed": 1}]), tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "anna's result has records without objective, seed, accuracy: grade again" in capsys.readouterr().err


def lab10(*classes, **more):
    return [submission(name, "lab10", records=records, **more) for name, records in classes]


def test_the_class_together(tmp_path):
    classes = [(f"s{k}", runs((0.3, 0.3 + 0.01 * k), (0.5, 0.5 + 0.03 * k), first_seed=10 * k)) for k in range(1, 9)]
    results = lab10(*classes, ("twin", classes[0][1]))
    results += [submission("false", "lab10", records=runs((0.0, 1.0)), accepted=False), submission("none", "lab10")]
    text = page(tmp_path, *results)
    values = np.array([2.0 * k for k in range(1, 9)])
    across = interval(values)
    told = f"95% interval from +{across['ci_low']:.1f} to +{across['ci_high']:.1f}: it does not hold 0."
    assert "mean +9.0 percentage points over 8 students (16 pairs of runs)" in text
    assert told in text
    assert "Left out, as their runs were not accepted: false." in text
    assert "twin (as s1)" in text
    rows = Tables(text).rows
    assert ["s2", "2", "40.0%", "44.0%", "+4.0"] in rows
    assert "is narrower than it should be" not in text


def test_a_small_class_without_a_difference_is_said_to_be_one(tmp_path):
    text = page(tmp_path, *lab10(("a", runs((0.3, 0.2))), ("b", runs((0.3, 0.45)))))
    assert "it holds 0." in text
    assert "Fewer than 6 students: the interval is narrower than it should be." in text
    (tmp_path / "auto" / "b.json").unlink()
    text = page(tmp_path, *lab10(("a", runs((0.3, 0.2)))))
    assert "mean −10.0 percentage points over 1 student (1 pair of runs)." in text
    assert "95% interval" not in text


def test_nobody_has_a_pair(tmp_path):
    text = page(tmp_path, *lab10(("a", runs((0.3, 0.2))[:1])))
    assert "No student has runs of both objectives with one seed that were accepted." in text
    assert "Left out, as their runs make no pairs: a." in text


def test_the_figure_shows_every_student_and_the_mean():
    values = np.array([3.0, -1.0, 2.0])
    (axes,) = plot_differences(values, interval(values)).axes
    dots = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert dots["a student, mean over seeds"] == [-1, 2, 3]
    assert dots["mean of the class, 95% interval"] == [pytest.approx(4 / 3)]
    assert "percentage points of held-out accuracy" in axes.get_xlabel()


def test_records_lie_in_the_result_and_reach_no_student(tmp_path):
    records = runs((0.123456, 0.654321))
    (result,) = lab10(("anna", records))
    write_result(result, tmp_path)
    saved = json.loads((tmp_path / "auto" / "anna.json").read_text("utf-8"))
    assert saved["exercises"][4]["parts"][0]["records"] == records
    assert sum("records" in part for row in saved["exercises"] for part in row["parts"]) == 1
    assert read_result(tmp_path / "auto" / "anna.json") is not None
    assert records_of(final_grades(tmp_path)) == (of("anna", records), [])
    for format_ in ("csv", "html", "moodle", "gradescope"):
        assert main(["export", str(tmp_path), "--format", format_]) == 0
    for file in (tmp_path / "export").rglob("*.*"):
        assert "123456" not in file.read_text("utf-8")
