"""Lab 10: its formulas are the library's, scripts are judged by what they do, and fake runs score what they deserve."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import struct
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load, save  # noqa: E402

import minigrpo  # noqa: E402
from grader import bundles  # noqa: E402
from grader.bundles import RUNS, WEIGHTS, grade, pack_runs  # noqa: E402
from grader.check import public_report  # noqa: E402
from grader.cli import main  # noqa: E402
from grader.drivers.lab10 import on_slurm  # noqa: E402
from grader.grade import grade_files, load_manifest  # noqa: E402
from grader.labs import find_exercise, lab10  # noqa: E402
from grader.protocol import ProtocolError  # noqa: E402
from grader.sandbox import Failure, Worker, best_isolation  # noqa: E402
from grader.submission import read_apart  # noqa: E402
from minigrpo.llm import gpu  # noqa: E402
from minigrpo.llm.runs import CHECKPOINT, MANIFEST, METRICS, can_resume  # noqa: E402
from minigrpo.llm.settings import PRESETS, Settings  # noqa: E402
from minigrpo.llm.training import train  # noqa: E402

ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------------------------------------------------------------
# Step sizes, denominators, memory
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_sizes_on_all_processes_are_those_of_whole_groups(seed):
    """Put together by prompt, on one process, they are what `minigrpo.step_sizes` says."""
    exercise = find_exercise("lab10.1")
    gathered = exercise.case(exercise.parts[2], seed, 0)["gathered"]
    longest = max(part["completion_ids"].shape[1] for part in gathered)
    rows = []
    for rank, part in enumerate(gathered):
        sizes = lab10.local_step_sizes(gathered, rank)
        for row in zip(part["prompt"].tolist(), part["completion_ids"], part["completion_mask"], sizes, strict=True):
            rows.append(row)
    for prompt in {row[0] for row in rows}:
        group = [row[1:] for row in rows if row[0] == prompt]
        ids, mask, sizes = (
            torch.stack([torch.nn.functional.pad(row[at], (0, longest - len(row[at]))) for row in group])
            for at in range(3)
        )
        assert torch.equal(minigrpo.step_sizes(ids, mask), sizes)


@pytest.mark.parametrize("seed", range(5))
def test_the_average_over_the_processes_is_the_mean_over_all_tokens(seed):
    rng = np.random.default_rng(seed)
    masks = [[torch.from_numpy(rng.random((2, 5)) < 0.6) for _ in range(2)] for _ in range(3)]
    tokens = [[int(mask.sum()) for mask in own] for own in masks]
    terms = [[torch.randn(2, 5, dtype=torch.float64) for _ in own] for own in masks]
    losses = [sum(lab10.micro_batch_losses(terms[r], masks[r], tokens)) for r in range(3)]
    every = torch.cat(
        [(s * m).flatten() for own, ms in zip(terms, masks, strict=True) for s, m in zip(own, ms, strict=True)]
    )
    assert float(sum(losses) / 3) == pytest.approx(float(-every.sum() / sum(map(sum, tokens))))


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.settings.model in gpu.SHAPES])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_memory_is_that_of_the_calculator(name, beta):
    settings = dataclasses.replace(PRESETS[name].settings, beta=beta)
    shape = gpu.shape_of(settings.model)
    layer = 10 * shape.hidden + 4 * shape.inner + 2 * shape.keys
    checkpointed = shape.layers * shape.hidden + layer
    found = lab10.memory_gb(
        parameters=shape.parameters,
        adapters=shape.adapters(settings.lora_rank) if settings.lora_rank else 0,
        beta=beta,
        layers=shape.layers,
        keys=shape.keys,
        vocabulary=shape.vocabulary,
        completions=settings.prompts * settings.group_size,
        micro_batch=settings.micro_batch,
        prompt_tokens=200,
        new_tokens=settings.max_new_tokens,
        floats=checkpointed if settings.gradient_checkpointing else shape.layers * layer,
    )
    theirs = gpu.memory(settings, prompt=200)
    states = found["weights"] + found["gradients"] + found["moments"]
    assert states == pytest.approx(theirs["weights"])
    for part in ("KV cache", "logits", "activations", "all"):
        assert found[part] == pytest.approx(theirs[part])


# ---------------------------------------------------------------------------------------------------------------------
# The stand-in for Slurm
# ---------------------------------------------------------------------------------------------------------------------

SHOWS = ["runs", "folders", "at the limit", "queued again", "updates", "states", "exit codes", "log"]
LINES = {
    "first": "#!/bin/bash",
    "array": "#SBATCH --array=0-3",
    "signal": "#SBATCH --signal=TERM@30",
    "requeue": "#SBATCH --requeue --open-mode=append",
    "choose": "objectives=(grpo lambda_grpo)\nobjective=${objectives[SLURM_ARRAY_TASK_ID / 2]}\n"
    "seed=$((SLURM_ARRAY_TASK_ID % 2))\nout=runs/$objective-$seed",
    "train": "srun python -m minigrpo llm train --objective $objective --seed $seed --out $out --auto-resume",
    "rc": "rc=$?",
    "again": "case $rc in 130 | 143) scontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID ;; esac",
    "end": "exit $rc",
}


def run(*stories: str, updates: int = 60, **lines: str) -> dict:
    """What becomes of the script with lines exchanged: jobs of 300 seconds, of which 30 load; updates of 10."""
    text = "\n".join((LINES | lines).values()) + "\n"
    cluster = {"stories": list(stories) or ["long"], "loading": 30, "updates": updates, "shows": SHOWS}
    arguments = {"objectives": ["grpo", "lambda_grpo"], "seeds": 2, "minutes": 5, "update_seconds": 10}
    return on_slurm({"f": lambda **_: text}, "f", arguments | {"cluster": cluster})


DONE = {
    "runs": ["grpo 0", "grpo 1", "lambda_grpo 0", "lambda_grpo 1"],
    "folders": [1] * 4,
    "at the limit": ["stopped in time"] * 4,
    "queued again": ["this task"] * 4,
    "updates": [60] * 4,
    "states": ["COMPLETED"] * 4,
    "exit codes": [0] * 4,
    "log": ["all of it"] * 4,
}


@pytest.mark.parametrize(
    "lines",
    [
        {},
        {
            "array": "#SBATCH -a 1-4",
            "choose": LINES["choose"].replace("SLURM_ARRAY_TASK_ID", "(SLURM_ARRAY_TASK_ID - 1)"),
        },
        {"array": "#SBATCH --array 0,1,2,3%2"},
        {"signal": "#SBATCH --signal=SIGTERM@60"},
        {"signal": "#SBATCH --signal=15@100\n#SBATCH --time=00:05:00"},
        {"signal": "#SBATCH --signal=INT@10"},
        {
            "again": "if [ $rc -eq 130 -o $rc -eq 143 ]; then\n"
            "  scontrol requeue $SLURM_ARRAY_JOB_ID\\_$SLURM_ARRAY_TASK_ID\nfi"
        },
        {
            "train": "resume=\nif [ -f $out/checkpoint.safetensors ]; then resume=--resume; fi\n"
            "srun -n 1 --unbuffered python3 -m minigrpo llm train --objective=$objective --seed=$seed "
            "--out=$out $resume"
        },
        {"signal": "", "train": f"{LINES['train']} --max-minutes 4.5"},
        {  # as labs/gpu/class does
            "choose": "student=$SLURM_ARRAY_TASK_ID\nobjectives=(grpo lambda_grpo)\n"
            "objective=${objectives[student % 2]}\nseed=$((student / 2))\n"
            "out=${RUNS:-runs/class}/student-$(printf %02d $student)",
            "train": "command=(python -m minigrpo llm train --quiet --seed $seed)\n"
            'command+=(--objective $objective --out $out --auto-resume)\nsrun "${command[@]}" ${OPTIONS:-}',
            "again": "task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID\nif [ $rc = 130 ] || [ $rc = 143 ]; then\n"
            '  if scontrol show job "$task" | grep -q JobState=RUNNING &&\n'
            '    [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then\n    scontrol requeue "$task"\n  fi\nfi',
        },
        {"train": f"mkdir -p $out; date; sleep 60 &\n{LINES['train']}"},  # what is left behind ends with the job
    ],
    ids=range(11),
)
def test_a_right_script_is_right_in_any_form(lines):
    assert run(**lines) == DONE


@pytest.mark.parametrize(
    ("stories", "lines", "field", "found"),
    [
        (
            ["long"],
            {"train": LINES["train"].replace("srun ", "")},
            "at the limit",
            "killed: the signal goes to steps, and there was none",
        ),
        (["long"], {"signal": "#SBATCH --signal=TERM@9"}, "at the limit", "killed: the signal came too late"),
        (
            ["long"],
            {"signal": "#SBATCH --signal=B:TERM@60"},
            "at the limit",
            "killed: the signal went to the script alone",
        ),
        (
            ["long"],
            {"signal": "#SBATCH --signal=USR1@60"},
            "at the limit",
            "ended by USR1, which training does not know",
        ),
        (["long"], {"signal": "#SBATCH --signal=TERM@290"}, "states", "NEVER ENDS"),  # while it loads, each time
        (["long"], {"requeue": "#SBATCH --open-mode=append"}, "states", "FAILED"),  # this cluster does not allow it
        (["long"], {"requeue": "#SBATCH --requeue"}, "log", "the last start alone"),
        (["long"], {"again": "scontrol requeue $SLURM_ARRAY_JOB_ID"}, "queued again", "the whole array"),
        (["long"], {"again": "scontrol requeue $SLURM_ARRAY_TASK_ID"}, "states", "FAILED"),  # another's job
        (["long"], {"train": LINES["train"].replace(" --auto-resume", "")}, "exit codes", 2),
        (["busy"], {}, "states", "COMPLETED"),
        (["busy"], {"again": "if [ $rc = 130 ]; then scontrol requeue $SLURM_JOB_ID; fi"}, "exit codes", 143),
        (["fails"], {}, "exit codes", 1),
        (["fails"], {"again": "if [ $rc != 0 ]; then scontrol requeue $SLURM_JOB_ID; fi"}, "states", "NEVER ENDS"),
        (["refused"], {"end": "echo end"}, "states", "COMPLETED"),
        (["short"], {}, "at the limit", "not reached"),
    ],
    ids=range(16),
)
def test_what_a_script_leaves_out_is_seen(stories, lines, field, found):
    assert run(*stories, **lines)[field] == [found] * 4


def test_the_last_task_has_the_number_of_the_array():
    found = run(again="if [ $rc = 130 ]; then scontrol requeue $SLURM_JOB_ID; fi")
    assert found["queued again"] == ["this task"] * 3 + ["the whole array"]


def test_runs_that_share_a_folder_are_refused_there():
    found = run("short", choose=LINES["choose"].replace("-$seed", ""))
    assert found["exit codes"] == [0, 2, 0, 2]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({"first": "# no shebang"}, "sbatch refuses a script without #!"),
        ({"array": ""}, "no array"),
        ({"array": "#SBATCH --array=0-99999"}, "no array"),
        ({"array": "#SBATCH --array=0-5000"}, "no array"),
        ({"signal": "#SBATCH --time=6"}, "more than `minutes`"),
        ({"end": "if"}, "bash can't read the script"),
        ({"first": "#!/bin/bash\necho first"}, "no array"),  # options end where commands begin
    ],
)
def test_a_script_that_does_not_start_is_told_why(lines, said):
    found = run(**lines)
    assert set(found) == set(SHOWS)
    assert all(said in text for text in found.values())
    exercise = find_exercise("lab10.4")
    assert said in exercise.judge({}, dict.fromkeys(SHOWS, [0]), found)


def test_a_script_that_hangs_or_is_none_is_an_answer_that_cannot_be_read(monkeypatch):
    monkeypatch.setattr("grader.drivers.lab10.MOST_SECONDS", 0.5)
    with pytest.raises(ProtocolError, match="did not end"):
        run(end="while true; do :; done")
    with pytest.raises(ProtocolError, match="stand-in's own"):
        run(end='yes >&"$(grep -o "&[0-9]*" "$BASH_ENV" | head -1 | tr -d "&")"')
    with pytest.raises(ProtocolError, match="must return the text"):
        on_slurm({"f": lambda **_: None}, "f", {"cluster": {}})


@pytest.mark.attack
@pytest.mark.skipif(best_isolation() == "none", reason="needs Linux")
@pytest.mark.parametrize(
    "line", ["kill -9 -1", ":(){ :|:& };:", "kill -9 $PPID", "sleep 100 & setsid sleep 100 & exit 0"]
)
def test_a_hostile_script_costs_its_own_case(line):
    """And leaves no process behind, as no worker does."""
    exercise = find_exercise("lab10.4")
    case = exercise.case(exercise.parts[0], 3, 0)
    source = f"def job_script(**_):\n    return {f'#!/bin/bash{chr(10)}#SBATCH --array=0-3{chr(10)}{line}'!r}"
    begin = time.monotonic()
    with Worker([("cell 1", source)], isolation=best_isolation()) as worker:
        answer = worker.ask("lab10_on_slurm", "job_script", case, seconds=10.0)
    assert time.monotonic() - begin < 60
    assert isinstance(answer, Failure) or exercise.verdict(case, exercise.run(exercise.reference, case), answer.value)
    with Worker([("cell 1", "")], isolation=best_isolation()) as worker:
        assert worker.alive


def test_the_check_of_a_script_says_what_is_wrong():
    lines, passed = public_report(find_exercise("lab10.4"), lab10.script_with(launch=""))
    assert not passed
    assert any("killed: the signal goes to steps, and there was none" in line for line in lines)
    lines, passed = public_report(find_exercise("lab10.4"), lambda **_: "#!/bin/bash\n#SBATCH --array=0-3\nif\n")
    assert not passed
    assert any("bash can't read the script: bash: line 4" in line for line in lines)


# ---------------------------------------------------------------------------------------------------------------------
# The bundle
# ---------------------------------------------------------------------------------------------------------------------

NAMES = [f"{objective}-{seed}" for objective in bundles.OBJECTIVES for seed in (3, 5, 8)]
PARTS = list(bundles.POINTS.values())


def settings(name: str, **changes) -> dict:
    objective, seed = name.rsplit("-", 1)
    made = Settings(objective=objective, seed=int(seed), updates=20, max_new_tokens=16, eval_size=100)
    return dataclasses.asdict(made) | changes


def rows(before: float, after: float, updates: int = 20, problems: int = 100) -> list[dict]:
    made = [dict.fromkeys(bundles.NEEDED, 0.5) | {"update": k} for k in range(updates + 1)]
    for row, accuracy in ((made[0], before), (made[-1], after)):
        row |= {"eval_accuracy": accuracy, "eval_problems": problems}
    return made


def written(lines: list[dict]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="module")
def honest() -> dict[str, bytes]:
    """Six bundles of noise around the first weights, with what they do as their claims."""
    generator = torch.Generator().manual_seed(0)
    first = bundles.first_weights()
    before = bundles.first_accuracy(16, 100)
    tensors, runs = {}, {}
    for name in NAMES:
        weights = {key: (w + 0.002 * torch.randn(w.shape, generator=generator)).half() for key, w in first.items()}
        tensors |= {f"{name}/{key}": weight for key, weight in weights.items()}
        after = bundles.accuracies({key: w.float() for key, w in weights.items()}, 16, [bundles.own_problems(100)])[0]
        runs[name] = {
            "manifest": json.dumps({"settings": settings(name), "resumed": [7, 7, 12]}),
            "metrics": written(rows(before, after)),
            "update": "21",
        }
    return {RUNS: json.dumps(runs).encode(), WEIGHTS: save(tensors)}


def earned(contents: dict, seed: int = 4) -> list[int]:
    """Points of each part, with a sentence where there are none."""
    parts = grade(contents, seed)
    assert [part["points"] for part in parts] == PARTS
    assert all(part["feedback"] or part["passed"] for part in parts)
    assert all(len(part["feedback"]) < 700 for part in parts)
    return [part["earned"] for part in parts]


def test_honest_runs_score_all(honest):
    assert earned(honest) == PARTS


@pytest.fixture
def quick(monkeypatch, honest):
    """Believe the honest claims, so that nothing is evaluated."""
    runs = bundles.read_runs(honest)
    known = {float(run.weights["model.norm.weight"].sum()): run.claims for run in runs}

    def accuracies(weights, new_tokens, tasks):
        before, after = known[float(weights["model.norm.weight"].sum())]
        return [after, after][: len(tasks)]

    before = runs[0].claims[0]
    monkeypatch.setattr(bundles, "accuracies", accuracies)
    monkeypatch.setattr(bundles, "first_accuracy", lambda new_tokens, size: before)


def entries(contents: dict, change) -> dict:
    """The files with `change` done to the first run's entry in runs.json."""
    runs = json.loads(contents[RUNS])
    change(runs[NAMES[0]])
    return contents | {RUNS: json.dumps(runs).encode()}


def metrics(change):
    """With `change` done to the first run's rows, or to their text."""

    def done(contents: dict) -> dict:
        def put(entry: dict) -> None:
            found = change([json.loads(line) for line in entry["metrics"].splitlines()])
            entry["metrics"] = found if isinstance(found, str) else written(found)

        return entries(contents, put)

    return done


def manifest(**changes):
    """With other settings of the first run."""

    def put(entry: dict) -> None:
        found = json.loads(entry["manifest"])
        found["settings"] |= changes
        entry["manifest"] = json.dumps(found)

    return lambda contents: entries(contents, put)


def resumed(value):
    def put(entry: dict) -> None:
        found = json.loads(entry["manifest"])
        found["resumed"] = value
        entry["manifest"] = json.dumps(found)

    return lambda contents: entries(contents, put)


def weights(change):
    """With `change` done to all tensors, (name, tensor) → tensor or None; of the first run where it wants."""

    def done(contents: dict) -> dict:
        tensors = load(contents[WEIGHTS])
        made = {name: change(name, tensor, tensors) for name, tensor in tensors.items()}
        return contents | {WEIGHTS: save({name: x.clone() for name, x in made.items() if x is not None})}

    return done


def of_first(change):
    return weights(lambda name, x, every: change(name, x, every) if name.startswith(f"{NAMES[0]}/") else x)


def other(name: str) -> str:
    return name.replace(f"{NAMES[0]}/", f"{NAMES[1]}/")


def missing(contents: dict) -> dict:
    runs = json.loads(contents[RUNS])
    del runs[NAMES[2]]
    return contents | {RUNS: json.dumps(runs).encode()}


def renamed(name: str):
    def done(contents: dict) -> dict:
        runs = json.loads(contents[RUNS])
        runs[name] = runs.pop(NAMES[0])
        return contents | {RUNS: json.dumps(runs).encode()}

    return done


def raw(name: str, change):
    return lambda contents: contents | {name: change(contents[name])}


def forged(before: float | None = None, after: float | None = None):
    def change(lines: list[dict]) -> list[dict]:
        for row, value in ((lines[0], before), (lines[-1], after)):
            if value is not None:
                row["eval_accuracy"] = value
        return lines

    return metrics(change)


BROKEN, UNFAIR, UNBROKEN, FALSE = [0, 1, 1, 0], [2, 0, 1, 2], [2, 1, 0, 2], [2, 1, 1, 0]
UNREAD, NOTHING = [0, 0, 0, 0], [0, 0, 0, 0]
FAKES = {
    "a better end claimed": (forged(after=0.99), FALSE),
    "a worse start claimed": (forged(before=0.1), FALSE),
    "a claim on fewer problems": (metrics(lambda r: rows(0.5, 0.5, problems=5)), BROKEN),
    "a claim above 1": (forged(after=1.5), BROKEN),
    "a claim of NaN": (metrics(lambda r: written(r).replace('"reward": 0.5', '"reward": NaN', 1)), BROKEN),
    "a claim that is a word": (forged(after="0.5"), BROKEN),
    "an update twice": (metrics(lambda r: [*r[:8], *r[7:]]), BROKEN),
    "rows from before the checkpoint once more": (metrics(lambda r: [*r[:12], *r[5:]]), BROKEN),
    "a gap": (metrics(lambda r: [*r[:8], *r[9:]]), BROKEN),
    "an end that is missing": (metrics(lambda r: r[:-1]), BROKEN),
    "another order": (metrics(lambda r: [r[0], r[2], r[1], *r[3:]]), BROKEN),
    "a row cut short": (metrics(lambda r: written(r)[:-30]), BROKEN),
    "no rows": (metrics(lambda r: ""), BROKEN),
    "rows that are none": (metrics(lambda r: "[]\n" * 21), BROKEN),
    "a million lines": (metrics(lambda r: "\n" * 1_000_000), BROKEN),
    "a log of 2 MB": (metrics(lambda r: written(r) + " " * (2 << 20)), BROKEN),
    "a number of 5000 digits": (metrics(lambda r: written(r).replace("0.5", "1" * 5000, 1)), BROKEN),
    "an earlier checkpoint": (lambda c: entries(c, lambda e: e.update(update="13")), BROKEN),
    "an entry that is a list": (lambda c: entries(c, lambda e: e.update(metrics=[])), [0, 0, 0, 0]),
    "an entry without metrics": (lambda c: entries(c, lambda e: e.pop("metrics")), [0, 0, 0, 0]),
    "other settings": (manifest(learning_rate=2e-4), UNFAIR),
    "another device": (manifest(device="cuda"), UNFAIR),
    "seeds that are no pairs": (manifest(seed=4), UNFAIR),
    "one seed twice": (manifest(seed=5), UNFAIR),
    "another objective": (manifest(objective="prm"), UNFAIR),
    "another model": (manifest(model="smollm2-135m"), UNREAD),
    "a model that is a path": (manifest(model="../../secret"), UNREAD),
    "adapters": (manifest(lora_rank=8), UNREAD),
    "few updates": (manifest(updates=5), UNREAD),
    "10⁹ problems": (manifest(eval_size=10**9), UNREAD),
    "a seed of 4000 digits": (manifest(seed=10**4000), UNREAD),
    "a setting that is a bool": (manifest(updates=True), UNREAD),
    "a setting too many": (manifest(trust_remote_code=True), UNREAD),
    "no manifest": (lambda c: entries(c, lambda e: e.update(manifest="")), UNREAD),
    "a deep manifest": (lambda c: entries(c, lambda e: e.update(manifest="[" * 100_000)), UNREAD),
    "never interrupted": (resumed([]), UNBROKEN),
    "interrupted after its end": (resumed([21]), UNREAD),
    "interrupted at no update": (resumed(["7"]), UNREAD),
    "interrupted backwards": (resumed([9, 4]), UNREAD),
    "one checkpoint twice": (of_first(lambda name, x, every: every[other(name)]), FALSE),
    "a copy with a little noise": (of_first(lambda name, x, every: every[other(name)] * 1.0005), FALSE),
    "an untrained checkpoint": (
        of_first(lambda name, x, every: bundles.first_weights()[name.partition("/")[2]].half()),
        FALSE,
    ),
    "NaN": (of_first(lambda name, x, every: x * float("nan")), BROKEN),
    "infinity": (of_first(lambda name, x, every: x / 0), BROKEN),
    "huge numbers": (of_first(lambda name, x, every: x * 0 + 6e4), BROKEN),
    "a weight that is missing": (of_first(lambda name, x, every: None if "norm" in name else x), BROKEN),
    "weights of a run that are missing": (of_first(lambda name, x, every: None), BROKEN),
    "float32": (of_first(lambda name, x, every: x.float()), NOTHING),
    "another shape": (of_first(lambda name, x, every: x[:-1]), NOTHING),
    "a further tensor": (raw(WEIGHTS, lambda c: save(load(c) | {"evil": torch.ones(2)})), NOTHING),
    "weights that are a pickle": (raw(WEIGHTS, lambda c: pickle.dumps([1.0])), NOTHING),
    "a header of 10 GB": (raw(WEIGHTS, lambda c: struct.pack("<Q", 10 << 30) + c[8:]), NOTHING),
    "weights cut short": (raw(WEIGHTS, lambda c: c[:-100]), NOTHING),
    "weights of 17 MB": (raw(WEIGHTS, lambda c: c + bytes(17 << 20)), NOTHING),
    "empty weights": (raw(WEIGHTS, lambda c: b""), NOTHING),
    "no weights": (raw(WEIGHTS, lambda c: None), NOTHING),
    "no runs": (raw(RUNS, lambda c: None), NOTHING),
    "runs that are no JSON": (raw(RUNS, lambda c: b"\x80\x04"), NOTHING),
    "runs that are a list": (raw(RUNS, lambda c: b"[1, 2, 3, 4, 5, 6]"), NOTHING),
    "deep runs": (raw(RUNS, lambda c: b"[" * 100_000), NOTHING),
    "runs of 9 MB": (raw(RUNS, lambda c: c + b" " * (9 << 20)), NOTHING),
    "a run twice": (raw(RUNS, lambda c: c[:-1] + b", " + c[1:]), NOTHING),
    "five runs": (missing, NOTHING),
    "a name that leads outside": (renamed("../../etc"), NOTHING),
    "a name of a megabyte": (renamed("a" * 10**6), NOTHING),
}


@pytest.mark.parametrize("fake", FAKES)
def test_a_fake_gets_exactly_what_it_deserves(fake, honest, quick):
    change, points = FAKES[fake]
    assert earned(change(dict(honest))) == points


def test_a_model_that_gives_nan_claims_nothing(honest, monkeypatch):
    """Finite weights whose product is not."""
    fake = of_first(lambda name, x, every: x * 0 + 9e3)(honest)
    assert earned(fake) == FALSE


def test_accepted_runs_are_records_for_the_class(honest, quick):
    """As measured; and a fake of any kind leaves none."""
    records = grade(honest, 4)[-1]["records"]
    assert len({(record["objective"], record["seed"]) for record in records}) == len(NAMES) == len(records)
    claimed = {(run.settings.objective, run.settings.seed): run.claims[1] for run in bundles.read_runs(honest)}
    assert {(record["objective"], record["seed"]): record["accuracy"] for record in records} == claimed
    assert "records" not in grade(FAKES["an update twice"][0](dict(honest)), 4)[-1]


def test_a_broken_run_is_named(honest, quick):
    parts = grade(FAKES["an update twice"][0](dict(honest)), 4)
    assert parts[0]["feedback"] == "grpo-3: metrics.jsonl goes back after update 7: rows are there twice"


# ---------------------------------------------------------------------------------------------------------------------
# Packing
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The folder of a short run, interrupted as the lab says."""
    folder = tmp_path_factory.mktemp("runs")
    done = False
    while not done:
        short = Settings(updates=20, max_new_tokens=16, eval_size=100, prompts=2)
        done = train(short, folder / "grpo-0", resume=can_resume(folder / "grpo-0"), max_minutes=0.01, progress=False)
    return folder


def copied(made: Path, folder: Path) -> Path:
    target = folder / "grpo-0"
    target.mkdir(parents=True)
    for name in (MANIFEST, METRICS, CHECKPOINT):
        (target / name).write_bytes((made / "grpo-0" / name).read_bytes())
    return target


def test_a_real_run_is_whole_and_its_claims_hold(made):
    contents, said = pack_runs(made)
    assert said == []
    found = bundles.read_weights(contents[WEIGHTS], ["grpo-0"])
    run = bundles.read_run("grpo-0", json.loads(contents[RUNS])["grpo-0"], found["grpo-0"])
    assert run.wrong == ()
    assert run.resumed
    assert bundles.copies([run]) == []
    assert bundles.false_claims([run], bundles.measured([run], 9)) == []
    own = bundles.accuracies(run.weights, 16, [bundles.own_problems(100)])[0]
    assert own == pytest.approx(run.claims[1], abs=0.011)  # half precision: one answer at most


def test_links_logs_and_pipes_are_not_packed(made, tmp_path):
    """What lies in a run's folder costs that run, in a sentence, and 10 GB are not read."""
    target = copied(made, tmp_path / "link")
    (target / METRICS).unlink()
    (target / METRICS).symlink_to("/etc/passwd")
    assert pack_runs(tmp_path / "link")[1] == [f"grpo-0 is left out: {METRICS} is a link: copy the run itself"]
    target = copied(made, tmp_path / "log")
    with (target / METRICS).open("r+b") as file:
        file.truncate(10 << 30)
    assert "larger than 1024 KiB" in pack_runs(tmp_path / "log")[1][0]
    target = copied(made, tmp_path / "pipe")
    (target / METRICS).unlink()
    os.mkfifo(target / METRICS)
    assert pack_runs(tmp_path / "pipe")[1] == [f"grpo-0 is left out: {METRICS} is missing"]
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "grpo-0").symlink_to(made / "grpo-0")
    assert "is a link" in pack_runs(tmp_path / "outside")[1][0]


def test_an_unfinished_run_is_packed_without_weights(made, tmp_path):
    target = copied(made, tmp_path)
    (target / CHECKPOINT).unlink()
    contents, said = pack_runs(tmp_path)
    assert said == [f"grpo-0 is packed without weights: {CHECKPOINT} is missing"]
    assert list(json.loads(contents[RUNS])) == ["grpo-0"]
    copied(made, tmp_path / "more")
    (tmp_path / "more" / "grpo-0" / CHECKPOINT).write_bytes(b"x" * 100)
    assert "can't be read" in pack_runs(tmp_path / "more")[1][0]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a folder"):
        pack_runs(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no run"):
        pack_runs(tmp_path)
    for number in range(13):
        (tmp_path / f"run{number}").mkdir()
        (tmp_path / f"run{number}" / MANIFEST).touch()
    with pytest.raises(ValueError, match="13 runs, where the lab asks for 6"):
        pack_runs(tmp_path)


def test_submit_packs_runs_and_the_grader_reads_them(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "ann.zip"
    assert main(["submit", "lab10", "--runs", str(made), "--out", str(out)]) == 0
    assert f"holds lab10_shared_machines.ipynb, {RUNS}, {WEIGHTS}" in capsys.readouterr().out
    entry = load_manifest(ROOT / "labs")["lab10"]
    submission = read_apart(out, "ann", entry, bundles.FILES)
    parts = grade_files(lab10.ARTIFACTS[0], submission, 5)
    assert [part.earned for part in parts] == NOTHING
    assert parts[0].feedback == "6 runs are asked for, 1 are there"
    assert main(["submit", "lab09", "--runs", str(made), "--out", str(out)]) == 2
    assert "--runs is for lab10" in capsys.readouterr().err
    assert main(["submit", "lab10", "--out", str(out)]) == 0
    assert "with --runs DIR" in capsys.readouterr().out


def test_a_file_of_10_gb_costs_the_runs_alone(tmp_path):
    entry = load_manifest(ROOT / "labs")["lab10"]
    (tmp_path / "ann").mkdir()
    notebook = ROOT / "labs" / "lab10_shared_machines.ipynb"
    (tmp_path / "ann" / notebook.name).write_bytes(notebook.read_bytes())
    with (tmp_path / "ann" / RUNS).open("wb") as file:
        file.truncate(10 << 30)
    submission = read_apart(tmp_path / "ann", "ann", entry, bundles.FILES)
    assert len(submission.exercises) == 4
    parts = grade_files(lab10.ARTIFACTS[0], submission, 5)
    assert [part.earned for part in parts] == NOTHING
    assert "larger than 64 MiB" in parts[0].feedback


def test_the_limits_have_margin_over_honest_runs():
    """grader/thresholds/lab10.json: pairs made as the lab says."""
    found = json.loads((ROOT / "grader" / "thresholds" / "lab10.json").read_text(encoding="utf-8"))["summary"]
    assert found["seeds"] >= 30
    assert found["own"][1] <= bundles.OWN / 2
    assert found["deviation"][1] <= 0.9 * bundles.DEVIATIONS
    assert found["copy"][0] >= 3 * bundles.COPY
    assert found["resumed"][0] >= 1
