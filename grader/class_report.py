"""How a class did in a lab, one page for its instructor: points, parts, named mistakes, what waits for a person.

For lab 10 also the class's pooled comparison of the two objectives. It is made of the grader's own measurements, never
of what a student claims: a part of an exercise on files may carry `records`, a dict for each run with the keys RECORD,

    {"objective": "grpo" or "lambda_grpo", "seed": 3, "accuracy": 0.41}   accuracy: held out, as the grader evaluated it

beside the keys name, points, earned, passed and feedback of what an `Artifact`'s `grade` returns. A part carries them
only where the runs are whole, differ in nothing but objective and seed, and the numbers are finite.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grader.labs import exercises
from grader.results import Grade, MarkedExercise, PartResult
from minigrpo.report import Block, Picture, Table, report
from minigrpo.stats import interval
from minigrpo.viz.style import NAMES, PALETTE, label_axes, true_minus

RECORD = (
    "objective",
    "seed",
    "accuracy",
)  # the keys of a record; `pooled` wants `student` beside them
PAIR = ("grpo", "lambda_grpo")  # the difference is the second less the first
FEW = 6  # students below which a bootstrap's interval is too narrow to be trusted
MOST_BARS = 40
Section = tuple[str, list[Block]]


def write_class_report(
    grades: Sequence[Grade],
    entry: Mapping,
    titles: Mapping[str, str],
    notes: Sequence[str],
    path: Path,
) -> Path:
    """Write the page. What students wrote is shown as text.

    Args:
        grades: of the class.
        entry: the lab in the manifest.
        titles: the heading of each exercise.
        notes: sentences on who handed in: results that count no more, who is missing.
        path: of the page.

    Raises: OSError as `report`.
    """
    sections = [
        _handed_in(grades, notes),
        _points(grades),
        _exercises(grades, titles),
        _mistakes(grades),
        _waiting(grades),
        _failures(grades),
        _comparison(grades),
    ]
    shown = [(heading, blocks) for heading, blocks in sections if blocks]
    return report(path, shown, f"{entry['title']}: the class")


def _graded(grades: Sequence[Grade]) -> list[Grade]:
    """Those whose submission could be read, and who have a grade."""
    return [grade for grade in grades if not grade.problem and not grade.ungraded]


def _share(part: int, whole: int) -> tuple[str, str]:
    """A share as counts and in percent."""
    return f"{part} of {whole}", f"{part / whole:.0%}" if whole else "–"


def _are(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


# ---------------------------------------------------------------------------------------------------------------------
# Who, and how many points
# ---------------------------------------------------------------------------------------------------------------------


def _handed_in(grades: Sequence[Grade], notes: Sequence[str]) -> Section:
    """How many handed in, and whose work could not be read."""
    students = [grade for grade in grades if not grade.stray]
    unread = [grade for grade in students if grade.problem and not grade.failed]
    failed = [grade for grade in students if grade.ungraded]
    done = len(students) - len(unread) - len(failed)
    counts = [
        f"{_are(len(students), 'student has', 'students have')} handed in",
        f"{done} graded",
        f"{len(unread)} that can't be read",
        f"{len(failed)} without a grade, as the grader failed",
    ]
    blocks: list[Block] = [f"{'; '.join(counts)}."]
    if unread:
        rows = [(grade.student, grade.problem) for grade in unread]
        blocks.append(Table(("can't be read", "why"), rows))
    strays = [grade.student for grade in grades if grade.stray]
    blocks += [f"No notebook, and perhaps no student's: {', '.join(strays)}."] if strays else []
    return "Handed in", [*blocks, *(f"{note}." for note in notes)]


def _points(grades: Sequence[Grade]) -> Section:
    """The distribution of points."""
    graded = _graded(grades)
    if not graded:
        return "Points", ["Nobody has a grade yet."]
    earned = [grade.earned for grade in graded]
    most = graded[0].points
    middle = f"mean {fmean(earned):.1f}, median {median(earned):g}"
    text = f"{_are(len(graded), 'student', 'students')}, {middle} of {most} points."
    waiting = sum(any(row.open for row in grade.exercises) for grade in graded)
    if waiting:
        text += (
            f" {_are(waiting, 'has', 'have')} answers without a mark, which count nothing so far."
        )
    figure, heights = plot_points(graded)
    told = ", ".join(f"{count} with {points:g}" for points, count in sorted(heights.items()))
    alt = f"Histogram of the points of {len(graded)} students, of {most}: {told}; {middle}."
    return "Points", [text, Picture(figure, alt)]


def plot_points(grades: Sequence[Grade]) -> tuple[Figure, Counter]:
    """Draw how many students have how many points; return the figure and how many have which.

    Students whose answers wait for marks stand hatched on top of the others.
    """
    most = grades[0].points
    width = max(1, math.ceil(most / MOST_BARS))
    groups: dict[str, Counter] = {"all is marked": Counter(), "marks are missing": Counter()}
    for grade in grades:
        name = "marks are missing" if any(row.open for row in grade.exercises) else "all is marked"
        groups[name][width * math.floor(grade.earned / width + 0.5)] += 1
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    axes = figure.subplots()
    looks = {
        "all is marked": {"color": PALETTE["rloo"]},
        "marks are missing": {"color": PALETTE["dr_grpo"], "hatch": "//", "edgecolor": "white"},
    }
    below: Counter = Counter()
    for name, heights in groups.items():
        places = sorted(heights)
        if places:
            bottom = [below[place] for place in places]
            tops = [heights[place] for place in places]
            axes.bar(places, tops, 0.85 * width, bottom=bottom, label=name, **looks[name])
        below += heights
    middle = median(grade.earned for grade in grades)
    axes.axvline(middle, color="black", linestyle="--", linewidth=1.3, label=f"median {middle:g}")
    rounded = f", rounded to {width}" if width > 1 else ""
    label_axes(axes, f"points, of {most}{rounded}", "students")
    axes.set_xlim(-0.7 * width, most + 0.7 * width)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend_above(axes)
    return figure, below


def _legend_above(axes: Axes) -> None:
    """A legend that covers nothing."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=3,
        fontsize=9.5,
        frameon=False,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Exercises
# ---------------------------------------------------------------------------------------------------------------------


def _found(grades: Sequence[Grade]) -> Iterator[tuple[Grade, MarkedExercise]]:
    """Every exercise of every submission that could be read, but where the grader failed."""
    for grade in grades:
        for row in [] if grade.problem else grade.exercises:
            if not row.failed:
                yield grade, row


def _exercises(grades: Sequence[Grade], titles: Mapping[str, str]) -> Section:
    """The share of students with full points, and with each part."""
    rows: dict[str, list[MarkedExercise]] = {}
    for _, row in _found(grades):
        rows.setdefault(row.id, []).append(row)
    if not rows:
        return "Exercises", []
    whole, parts = [], []
    for name, found in rows.items():
        points = found[0].points
        judged = [row for row in found if not row.open]
        full = sum(row.earned == row.points for row in judged)
        mean = f"{fmean(row.earned for row in judged):.1f}" if judged else "–"
        title = titles.get(name) or found[0].kind
        whole.append((name, title, points, mean, *_share(full, len(judged))))
        parts += _parts(name, found)
    head = ("exercise", "about", "points", "mean", "full points", "share")
    blocks: list[Block] = [
        "A person's marks included; answers without a mark are left out.",
        Table(head, whole),
    ]
    head = ("exercise", "part", "points", "earned by", "share")
    blocks += ["Part by part, as the grader found it.", Table(head, parts)] if parts else []
    return "Exercises", blocks


def _parts(name: str, found: Sequence[MarkedExercise]) -> list[tuple]:
    """A row for each part of an exercise."""
    parts: dict[str, list[PartResult]] = {}
    for part in chain.from_iterable(row.parts for row in found):
        parts.setdefault(part.name, []).append(part)
    return [
        (name, part, own[0].points, *_share(sum(p.passed for p in own), len(own)))
        for part, own in parts.items()
    ]


def _mistakes(grades: Sequence[Grade]) -> Section:
    """The mistakes that the grader knows by name, the most common first."""
    lab = grades[0].lab
    names = {
        (exercise.id, mistake.hint): mistake.name
        for exercise in exercises(lab)
        for mistake in exercise.mistakes
    }
    students: dict[tuple[str, str], set[str]] = {}
    for grade, row in _found(grades):
        for part in row.parts:
            if part.mistake and not part.passed:
                students.setdefault((row.id, part.feedback), set()).add(grade.student)
    if not students:
        return "Named mistakes", ["No answer is that of a mistake that the grader knows."]
    common = sorted(students.items(), key=lambda found: (-len(found[1]), found[0]))
    rows = [
        (key[0], names.get(key, "(of an earlier version)"), len(who), key[1]) for key, who in common
    ]
    text = "An answer equal to that of a known mistake; students read the hint, worded as a guess."
    return "Named mistakes", [text, Table(("exercise", "mistake", "students", "hint"), rows)]


# ---------------------------------------------------------------------------------------------------------------------
# What waits for a person
# ---------------------------------------------------------------------------------------------------------------------


def _waiting(grades: Sequence[Grade]) -> Section:
    """Who has written answers without a mark, or marks that have to be looked at again."""
    marks = {"without a mark": "open", "mark for an earlier submission: look again": "stale"}
    lines: list[Block] = []
    for words, flag in marks.items():
        students: dict[str, list[str]] = {}
        for grade in grades:
            for row in grade.exercises:
                if getattr(row, flag):
                    students.setdefault(row.id, []).append(grade.student)
        lines += [
            f"{name}, {words} ({len(who)}): {', '.join(who)}." for name, who in students.items()
        ]
    return "To mark", lines or ["Nothing waits for a mark."]


def _failures(grades: Sequence[Grade]) -> Section:
    """What the grader itself failed at, and with what."""
    rows = []
    for grade in grades:
        rows += [(grade.student, "all of it", grade.failed)] if grade.failed else []
        rows += [(grade.student, row.id, row.failed) for row in grade.exercises if row.failed]
    if not rows:
        return "Failures of the grader", ["None."]
    text = "No student's fault: `grade` tries again the next time, or mark it in the form."
    return "Failures of the grader", [text, Table(("student", "where", "with what"), rows)]


# ---------------------------------------------------------------------------------------------------------------------
# Lab 10: the class's comparison
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pooled:
    """λ-GRPO less GRPO, a value a student."""

    pairs: Mapping[str, int]  # seeds with both objectives, by student
    means: Mapping[str, tuple[float, float]]  # over these seeds, of both objectives, by student
    alone: tuple[str, ...]  # students without a pair, or with two runs of one objective and seed
    repeated: Mapping[str, str]  # students whose numbers are another's to the last digit, and whose

    @property
    def differences(self) -> dict[str, float]:
        return {student: second - first for student, (first, second) in self.means.items()}


def records_of(grades: Sequence[Grade]) -> tuple[list[dict[str, Any]], list[str]]:
    """What the grader measured: records with their `student`, and whose runs it did not accept.

    Raises: ValueError for a record that lacks a key.
    """
    records, refused = [], []
    for grade, row in _found(grades):
        for part in row.parts:
            if not part.records:
                continue
            if not part.passed:
                refused.append(grade.student)
                continue
            if not all(set(RECORD) <= set(record) for record in part.records):
                wanted = ", ".join(RECORD)
                raise ValueError(
                    f"{grade.student}'s result has records without {wanted}: grade again"
                )
            records += [{"student": grade.student, **record} for record in part.records]
    return records, refused


def pooled(records: Sequence[Mapping[str, Any]]) -> Pooled:
    """Pair runs of one student and seed, take each pair's difference, and average within the student.

        d_s = mean over seeds of (accuracy of λ-GRPO − accuracy of GRPO)

    Args: records: a dict for each run: student, objective, seed, accuracy.
    """
    runs: dict[str, dict[tuple[str, int], float]] = {}
    counts: Counter[str] = Counter()
    for record in records:
        student = record["student"]
        counts[student] += 1
        key = (record["objective"], record["seed"])
        runs.setdefault(student, {})[key] = record["accuracy"]
    pairs, means, alone, repeated = {}, {}, [], {}
    first_with: dict[tuple, str] = {}
    for student, own in runs.items():
        seeds = sorted(seed for name, seed in own if name == PAIR[0] and (PAIR[1], seed) in own)
        if not seeds or len(own) < counts[student]:
            alone.append(student)
            continue
        numbers = tuple((seed, *(own[name, seed] for name in PAIR)) for seed in seeds)
        owner = first_with.setdefault(numbers, student)
        if owner != student:
            repeated[student] = owner
            continue
        pairs[student] = len(seeds)
        means[student] = (
            fmean(grpo for _, grpo, _ in numbers),
            fmean(other for _, _, other in numbers),
        )
    return Pooled(pairs, means, tuple(alone), repeated)


def _comparison(grades: Sequence[Grade]) -> Section:
    """The class's comparison, where a lab has one."""
    records, refused = records_of(grades)
    if not records and not refused:
        return "", []
    found = pooled(records)
    heading = f"{NAMES[PAIR[1]]} against {NAMES[PAIR[0]]}, the class together"
    blocks: list[Block] = []
    if found.means:
        blocks += _difference(found)
    else:
        blocks.append("No student has runs of both objectives with one seed that were accepted.")
    notes = {
        "Left out, as their runs were not accepted": refused,
        "Left out, as their runs make no pairs": list(found.alone),
        "Counted once, as their numbers are another's to the last digit": [
            f"{student} (as {owner})" for student, owner in found.repeated.items()
        ],
    }
    blocks += [f"{words}: {', '.join(who)}." for words, who in notes.items() if who]
    return heading, blocks


def _difference(found: Pooled) -> list[Block]:
    """The mean difference in words, a figure and a table."""
    differences = found.differences
    values = 100 * np.array(list(differences.values()))  # (students,) in percentage points
    across = interval(values)
    students = _are(len(values), "student", "students")
    text = (
        f"{NAMES[PAIR[1]]} less {NAMES[PAIR[0]]} in held-out accuracy, as the grader evaluated it: "
    )
    text += f"mean {_signed(across['mean'])} percentage points over {students}"
    text += f" ({_are(sum(found.pairs.values()), 'pair', 'pairs')} of runs)."
    if len(values) > 1:
        low, high = across["ci_low"], across["ci_high"]
        text += f" 95% interval from {_signed(low)} to {_signed(high)}: "
        holds_zero = low <= 0 <= high
        text += "it holds 0." if holds_zero else "it does not hold 0."
    few = f"Fewer than {FEW} students: the interval is narrower than it should be."
    how = (
        "Each seed makes a pair within a student, whose settings are alike; a student's value is the mean over the "
        "seeds, and the interval (bootstrap) is over students, one value each."
    )
    rows = [
        (student, found.pairs[student], *(f"{mean:.1%}" for mean in means), _signed(difference))
        for (student, means), difference in zip(found.means.items(), values, strict=True)
    ]
    head = ("student", "pairs", *(NAMES[name] for name in PAIR), "difference")
    alt = f"A dot for each student's mean difference, from {_signed(values.min())} to {_signed(values.max())}. {text}"
    picture = Picture(plot_differences(values, across), alt, how)
    return [text, *([few] if len(values) < FEW else []), picture, Table(head, rows)]


def _signed(value: float) -> str:
    return true_minus(f"{value:+.1f}")


def plot_differences(values: np.ndarray, across: Mapping[str, float]) -> Figure:
    """Draw each student's difference, from the smallest to the largest, and their mean with its interval.

    Args:
        values: float (students,), in percentage points.
        across: what `interval` says of them.
    """
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    axes = figure.subplots()
    order = np.sort(values)
    places = np.arange(len(order))
    axes.axvline(0, color="black", linewidth=1.0)
    hue = PALETTE[PAIR[1]]
    axes.plot(order, places, "o", color=hue, markersize=6, label="a student, mean over seeds")
    height = -max(1.5, 0.12 * len(order))
    mean = across["mean"]
    if len(order) > 1:
        ends = [across["ci_low"], across["ci_high"]]
        axes.plot(ends, [height, height], color=PALETTE["bad"], linewidth=3)
    name = "mean of the class" + (", 95% interval" if len(order) > 1 else "")
    axes.plot([mean], [height], "D", color=PALETTE["bad"], markersize=8, label=name)
    axes.set_yticks([])
    axes.set_ylim(height - 1, len(order))
    below = f"{NAMES[PAIR[1]]} less {NAMES[PAIR[0]]}, percentage points of held-out accuracy"
    label_axes(axes, below, "students")
    _legend_above(axes)
    return figure
