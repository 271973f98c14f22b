"""The class's script on a real Slurm: limits, requeues, cancellations and shares. `make test ARGS="-n 0 -m slurm"`."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
import cluster

from minigrpo.llm.board import read_board
from minigrpo.llm.runs import load_run, read_manifest, read_metrics, read_settings

pytestmark = pytest.mark.slurm

ROOT, CLASS = cluster.ROOT, cluster.CLASS
STUDENTS = ("mg-anna", "mg-ben", "mg-carla")
TIMES = ("seconds", "tokens_per_second", "memory_gb")
# With a limit of 60 s and a signal 10 s before it Slurm, which looks every 30 s, sends it after 20 to 50 s.
UPDATES = 1000  # more than 50 s but on the quickest machine
FEW = f"--eval-every {UPDATES} --save-every {UPDATES} --eval-size 20"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The folder of a cluster with three users, of whom two are students."""
    lacking = cluster.missing()
    if os.geteuid() or lacking:
        if os.environ.get("CI"):
            pytest.fail(f"needs root and {', '.join(lacking)}: .ci/run installs it")
        pytest.skip("needs root, and Debian's slurm-wlm, slurmdbd, munge and mariadb-server")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # students submit from there
    if subprocess.run(["pgrep", "-x", "slurmctld|munged"], capture_output=True).returncode == 0:
        pytest.fail("a Slurm or a munge runs here already: the tests start their own")
    for name in STUDENTS:
        subprocess.run(["useradd", "-M", name], check=False)  # there from a run that was killed
    try:
        cluster.start(folder)
        for _ in range(2):  # the second time changes nothing
            cluster.run("sh", CLASS / "qos.sh", *STUDENTS[:2], folder=folder)
        yield folder
    finally:
        cluster.stop(folder)
        for name in STUDENTS:
            subprocess.run(["userdel", name], check=True)


def submit(folder, runs, *options, variables=None):
    """Send the class's script; the number of its job."""
    variables = {"PRESET": "cpu", "RUNS": str(runs), "PYTHON": sys.executable} | (variables or {})
    log = folder / f"{Path(runs).name}-%a.out"
    small = ["--cpus-per-task=1", "--mem=2000", f"--output={log}"]
    out = cluster.run("sbatch", *small, *options, CLASS / "run.sbatch", folder=folder, cwd=ROOT, env=variables)
    return re.search(r"Submitted batch job (\d+)", out)[1]


def jobs(folder, *options, form="%i|%T|%u|%r"):
    """What squeue shows, a tuple a job."""
    lines = cluster.run("squeue", "-h", "-o", form, *options, folder=folder).splitlines()
    return [tuple(line.split("|")) for line in lines]


def ended(folder, job):
    """Wait until no task of a job is left; states and exit codes by task."""
    cluster.wait(lambda: not jobs(folder, "-j", job), 400, f"job {job} does not end: {jobs(folder)}")
    wanted = ["sacct", "-X", "-n", "-P", "-j", job, "--format=JobID,State,ExitCode"]

    def found():
        lines = [line.split("|") for line in cluster.run(*wanted, folder=folder).splitlines()]
        states = {task: (state.split()[0], code) for task, state, code in lines}
        open_ones = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")
        return None if any(state in open_ones for state, _ in states.values()) else states

    return cluster.wait(found, 30, f"the accounts don't know how job {job} ended")


def log_of(folder, runs, task):
    return (folder / f"{Path(runs).name}-{task}.out").read_text()


def numbers(run):
    """Rows without what a clock says."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read_metrics(run)]


def stopped_in_time(codes):
    """The codes of a job's starts: it was stopped at least once, with a checkpoint, and then came to its end."""
    *before, last = codes
    assert last == "0"
    assert "130" in before
    assert set(before) <= {"130", "143"}  # 143: during the imports, on a busy machine


def test_an_array_that_meets_its_limit_ends_as_unbroken_runs_do(slurm, tmp_path):
    runs, unbroken = tmp_path / "class", tmp_path / "unbroken"
    variables = {"OPTIONS": f"--updates {UPDATES} {FEW}"}
    job = submit(slurm, runs, "--array=0-1%2", "--time=1", "--signal=TERM@10", variables=variables)
    assert ended(slurm, job) == {f"{job}_{task}": ("COMPLETED", "0:0") for task in (0, 1)}
    ended(slurm, submit(slurm, unbroken, "--array=0-1%2", "--time=10", variables=variables))
    for task, objective in enumerate(("grpo", "lambda_grpo")):
        run, log = runs / f"student-0{task}", log_of(slurm, runs, task)
        starts = re.findall(r"job \d+, start (\d+)", log)
        codes = re.findall(r"ended with (\d+)", log)
        assert len(starts) == len(codes), log
        stopped_in_time(codes)
        assert 1 <= len(read_manifest(run)["resumed"]) <= len(starts) - 1
        settings = read_settings(run)
        assert (settings.objective, settings.seed) == (objective, 0)
        whole = unbroken / f"student-0{task}"
        assert "resumed" not in read_manifest(whole)
        assert numbers(run) == numbers(whole)
        assert len(numbers(run)) == UPDATES + 1
        ours, theirs = (load_file(folder / "checkpoint.safetensors") for folder in (run, whole))
        assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_a_recipe_of_trl_goes_on_too(slurm, tmp_path):
    runs = tmp_path / "trl"
    model = ROOT / "minigrpo" / "llm" / "tiny"
    options = f"model={model} task=arithmetic model_init_kwargs=null use_vllm=false use_cpu=true bf16=false prompts=4 "
    options += "max_completion_length=24 max_steps=300 save_steps=1000 logging_steps=1 report_to=none disable_tqdm=true"
    variables = {"RECIPE": str(CLASS.parent / "recipes" / "one_gpu_lora.yaml"), "OPTIONS": options}
    job = submit(slurm, runs, "--array=1", "--time=1", "--signal=TERM@10", variables=variables)
    assert ended(slurm, job) == {f"{job}_1": ("COMPLETED", "0:0")}
    codes = re.findall(r"ended with (\d+)", log_of(slurm, runs, 1))
    stopped_in_time(codes)
    state = json.loads((runs / "student-01" / "checkpoint-300" / "trainer_state.json").read_text())
    assert [row["step"] for row in state["log_history"] if "loss" in row] == list(range(1, 301))
    (line,) = read_board([runs])
    assert (line.state, line.objective, line.seed) == ("done", "lambda_grpo", 0)


def test_a_cancelled_job_leaves_a_readable_folder_and_stays_away(slurm, tmp_path):
    runs = tmp_path / "cancelled"
    run = runs / "student-09"
    job = submit(slurm, runs, "--array=9", variables={"OPTIONS": f"--updates 100000 {FEW}"})
    cluster.wait(lambda: run.is_dir() and len(list(run.glob("metrics.jsonl"))) == 1, 90, "the job does not train")
    cluster.run("scancel", f"{job}_9", folder=slurm)
    ((state, _),) = ended(slurm, job).values()
    assert state == "CANCELLED"
    rows = read_metrics(run)
    assert [row["update"] for row in rows] == list(range(len(rows)))
    assert load_run(run, dataclasses.replace(read_settings(run), updates=100_000))[1] == len(rows)
    assert jobs(slurm) == []


def test_a_run_that_is_wrong_fails_and_is_not_put_back(slurm, tmp_path):
    runs = tmp_path / "wrong"
    job = submit(slurm, runs, "--array=0", variables={"OPTIONS": "--group-size 1"})
    assert ended(slurm, job) == {f"{job}_0": ("FAILED", "2:0")}
    assert "group_size must be at least 2, got 1" in log_of(slurm, runs, 0)


def as_student(folder, name, *command):
    """A command of a student's; its whole result."""
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    return subprocess.run(command, user=name, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_two_students_cannot_take_each_other_s_share(slurm):
    sleep = ["sbatch", "--gres=gpu:1", "--mem=100", "--time=5", "--output=/dev/null", "--wrap", "sleep 300"]
    anna, ben, carla = STUDENTS
    for name in (anna, anna, anna, ben):
        done = as_student(slurm, name, *sleep)
        assert done.returncode == 0, done.stderr
    try:
        two = lambda: [job for job in jobs(slurm) if job[1] == "RUNNING"]  # noqa: E731
        cluster.wait(lambda: len(two()) == 2, 30, "the cards stay empty")
        assert sorted(job[2] for job in two()) == [anna, ben]
        waiting = {(job[2], job[3]) for job in jobs(slurm) if job[1] == "PENDING"}
        assert waiting == {(anna, "AssocMaxJobsLimit")}
        shown = [cluster.run("scontrol", "show", "job", "-d", job[0], folder=slurm) for job in two()]
        assert sorted(re.search(r"GRES=gpu:1\(IDX:(\d)\)", text)[1] for text in shown) == ["0", "1"]

        # more than a share is refused, and said
        refused = {
            ("--gres=gpu:2",): "QOSMaxGRESPerJob",
            ("--time=60",): "QOSMaxWallDurationPerJobLimit",
        }
        for options, why in refused.items():
            done = as_student(slurm, ben, *sleep[:4], *options, *sleep[5:])
            assert done.returncode != 0
            assert why in done.stderr
        done = as_student(slurm, anna, *sleep)  # the fourth, which may still wait
        assert done.returncode == 0
        assert "AssocMaxSubmitJobLimit" in as_student(slurm, anna, *sleep).stderr
        assert "Invalid account" in as_student(slurm, carla, *sleep).stderr  # she has no account
        other = two()[[job[2] for job in two()].index(ben)][0]
        assert as_student(slurm, anna, "scancel", other).returncode != 0
    finally:
        for name in (anna, ben):
            cluster.run("scancel", "-u", name, folder=slurm)
        cluster.wait(lambda: not jobs(slurm), 60, "cancelled jobs stay")


def test_a_try_goes_first_and_alone_and_is_not_put_back(slurm, tmp_path):
    """Ben's try passes what anna queued before it; beside a job of his own it waits; at its end it stays away."""
    anna, ben, _ = STUDENTS
    options = ["--mem=100", "--time=5", "--output=/dev/null", "--wrap", "sleep 300"]
    cluster.run("sbatch", "--gres=gpu:2", *options, folder=slurm)  # both cards are taken
    cluster.wait(lambda: jobs(slurm, "-t", "RUNNING"), 30, "the owner's job does not start")
    try:
        for name, more in ((anna, []), (anna, []), (ben, ["--qos=test"]), (ben, [])):
            done = as_student(slurm, name, "sbatch", "--gres=gpu:1", *more, *options)
            assert done.returncode == 0, done.stderr
        cluster.run("scancel", "-u", "root", folder=slurm)
        running = cluster.wait(
            lambda: (found := jobs(slurm, "-t", "RUNNING", form="%u|%q")) and len(found) == 2 and found, 60, "no jobs"
        )
        assert sorted(running) == [(anna, "class"), (ben, "test")]  # ben's other job waits, as anna's does
    finally:
        for name in (anna, ben, "root"):
            cluster.run("scancel", "-u", name, folder=slurm)
        cluster.wait(lambda: not jobs(slurm), 60, "cancelled jobs stay")

    # students can't read this environment's Python, so the owner makes the try
    cluster.run("sacctmgr", "-i", "modify", "user", "root", "set", "QOS+=test", folder=slurm)
    runs = tmp_path / "try"
    variables = {"OPTIONS": f"--updates 100000 {FEW} --max-minutes 0.05"}
    job = submit(slurm, runs, "--qos=test", "--time=5", "--array=7", variables=variables)
    ((state, _),) = ended(slurm, job).values()  # Slurm shows 130 as 2:0
    assert state == "FAILED"
    assert "ended with 130" in log_of(slurm, runs, 7)
    assert "a try is not put back" in log_of(slurm, runs, 7)
    assert read_board([runs])[0].objective == "lambda_grpo"
