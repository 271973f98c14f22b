"""Lab 10: gradients of micro-batches, and a job script on a stand-in for Slurm.

The stand-in reads the script's `#SBATCH` lines and runs the rest in bash, where `python`, `srun` and `scontrol` are
functions that ask it. Nothing is trained and no time passes: it counts seconds. It knows what lab 10's text says of
Slurm, and no more.
"""

import contextlib
import json
import math
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache

import torch

from grader.drivers import backward, named
from grader.protocol import ProtocolError


def losses_and_grads(namespace, function, arguments):
    """{"losses" (M,), "grads": one (B, T) a micro-batch}: of the sum of the losses, for arguments["terms"]."""
    leaves = [terms.detach().clone().requires_grad_() for terms in arguments["terms"]]
    losses = namespace[function](**arguments | {"terms": leaves})
    if not isinstance(losses, (list, tuple, torch.Tensor)):
        return losses
    if not all(isinstance(loss, torch.Tensor) and loss.numel() == 1 for loss in losses):
        return list(losses)
    if len(losses) == 0:
        return []
    together = torch.stack([loss.reshape(()) for loss in losses])
    backward(together.sum())
    grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    return {"losses": named(together.detach()), "grads": [named(grad) for grad in grads]}


# ---------------------------------------------------------------------------------------------------------------------
# A stand-in for Slurm
# ---------------------------------------------------------------------------------------------------------------------

MOST_STARTS = 7  # of one task: with more it never ends
MOST_TASKS = 64
ARRAY = 7000  # the array's id
MOST_SECONDS = 5.0  # that bash may take for one start
LONGEST = 1 << 20  # bytes of a command
TOO_LONG = f"the script did not end within {MOST_SECONDS:g} seconds"
KNOWN = {
    "TERM": 143,
    "INT": 130,
}  # signals that training knows, and its code where they come while it loads
OTHERS = {"USR1": 138, "USR2": 140, "HUP": 129}
NUMBERS = {"1": "HUP", "2": "INT", "10": "USR1", "12": "USR2", "15": "TERM"}
SHORT = {"-a": "--array", "-t": "--time"}

# What bash reads before the script: each function sends its words, and reads the code to return.
FUNCTIONS = r"""
_ask() {{
  printf '%s\0' "$#" "$@" >&{ask}
  local code=1
  read -r code <&{answer}
  return "$code"
}}
python() {{ _ask python "${{STEP-}}" "$@"; }}
python3() {{ python "$@"; }}
scontrol() {{
  if [[ ${{1-}} == show ]]; then
    echo "JobId=$SLURM_JOB_ID JobState=RUNNING"
  else
    _ask scontrol "$@"
  fi
}}
srun() {{
  while [[ ${{1-}} == -* ]]; do
    case $1 in -n | -N | -c) shift ;; esac
    shift
  done
  STEP=1 "$@"
}}
"""


@dataclass
class Task:
    """One task of the array: what became of it."""

    number: int
    job: int  # its id; the last task of an array has the array's own
    story: str
    starts: int = 0
    pairs: list = field(default_factory=list)  # objective and seed
    folders: set = field(default_factory=set)
    queued: list = field(default_factory=list)  # what was put back into the queue
    limits: list = field(default_factory=list)  # what happened where time ran out
    made: int = 0  # updates, those that were lost among them
    clock: float = 0.0  # seconds of this start
    requeue: bool = False
    killed: bool = False
    state: str = ""
    code: int = -1


def on_slurm(namespace, function, arguments):
    """What becomes of an array of jobs whose script function(**arguments) returns.

    arguments["cluster"] is the stand-in's: `stories` (one a task: short, long, busy, fails, refused), `loading`
    (seconds), `updates` (of a long run) and `shows` (the fields of the report that are handed on).
    """
    arguments = dict(arguments)
    cluster = arguments.pop("cluster")
    text = namespace[function](**arguments)
    if not isinstance(text, str):
        raise ProtocolError(f"{function} must return the text of a script, got {text!r:.80}")
    if shutil.which("bash") is None or os.name != "posix":
        raise ProtocolError("the script is run in bash, which is not here: Linux and macOS have it")
    return _ended(text, json.dumps(arguments | {"cluster": cluster}))


@cache
def _ended(text, arguments):
    """What becomes of a script; the grader asks for the same again when it looks for a mistake."""
    arguments = json.loads(arguments)
    cluster = arguments["cluster"]
    options = _options(text)
    numbers = _numbers(options.get("--array", ""))
    seconds = _seconds(options.get("--time", str(arguments["minutes"])))
    if not text.startswith("#!"):
        refused = "sbatch refuses a script without #! in its first line"
    elif not numbers or len(numbers) > MOST_TASKS:
        refused = "sbatch finds no array of tasks that it can read"
    elif not 0 < seconds <= 60 * arguments["minutes"]:
        refused = "sbatch refuses the time: it is none, or more than `minutes`"
    else:
        refused = _syntax(text)
    if refused:
        return dict.fromkeys(cluster["shows"], refused)
    plan = cluster | {"seconds": seconds, "update": arguments["update_seconds"]}
    stories = cluster["stories"]
    jobs = [*range(ARRAY + 1, ARRAY + len(numbers)), ARRAY]
    tasks = [
        Task(number, jobs[at], stories[at % len(stories)]) for at, number in enumerate(numbers)
    ]
    runs: dict = {}  # by folder: objective, seed and the updates in its checkpoint
    with tempfile.TemporaryDirectory() as desk:
        for task in tasks:
            _run_task(task, text, options, plan, runs, desk)
    report = _report(tasks, options)
    return {name: report[name] for name in cluster["shows"]}


def _syntax(text):
    """What keeps bash from reading a script; empty where nothing does."""
    done = subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True, check=False)
    lines = done.stderr.decode(errors="replace").splitlines()
    return f"bash can't read the script: {lines[0] if lines else ''}"[:200] * (done.returncode != 0)


def _report(tasks, options):
    """What happened, in words: one entry a task."""
    append = options.get("--open-mode", "truncate") == "append"
    return {
        "runs": sorted(f"{objective} {seed}" for task in tasks for objective, seed in task.pairs),
        "folders": [len(task.folders) for task in tasks],
        "at the limit": [", ".join(dict.fromkeys(task.limits)) or "not reached" for task in tasks],
        "queued again": [", ".join(dict.fromkeys(task.queued)) or "nothing" for task in tasks],
        "updates": [task.made for task in tasks],
        "states": [task.state for task in tasks],
        "exit codes": [task.code for task in tasks],
        "log": [
            "all of it" if append or task.starts == 1 else "the last start alone" for task in tasks
        ],
    }


def _options(text):
    """The options in a script's #SBATCH lines, which end where its commands begin."""
    found = {}
    for line in text.split("\n"):
        if line.strip() and not line.startswith("#"):
            break
        if not line.startswith("#SBATCH"):
            continue
        try:
            words = shlex.split(line[len("#SBATCH") :], comments=True)
        except ValueError as error:
            raise ProtocolError(f"sbatch can't read {line!r:.80} ({error})") from error
        name = ""
        for word in words:
            if word.startswith("-"):
                name, _, value = word.partition("=")
                name = SHORT.get(name, name)
                found[name] = value
            elif name:
                found[name] = word
    return found


def _numbers(text):
    """The numbers of an array, as in 0-5, 1,3 or 0-5%2; none where they can't be read."""
    numbers = []
    for piece in text.partition("%")[0].split(","):
        ends = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", piece)
        if ends is None:
            return []
        numbers += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return list(dict.fromkeys(numbers))


def _seconds(text):
    """The seconds of a time limit: minutes, minutes:seconds or hours:minutes:seconds; 0 where it can't be read."""
    if not re.fullmatch(r"\d{1,5}(:\d{1,2}){0,2}", text):
        return 0
    parts = [int(part) for part in text.split(":")]
    if len(parts) == 3:
        return 3600 * parts[0] + 60 * parts[1] + parts[2]
    return 60 * parts[0] + (parts[1] if len(parts) == 2 else 0)


def _signal(options):
    """The signal that was asked for: its name, how many seconds before the limit, and whether to the script alone."""
    asked = re.fullmatch(r"(?:([RB]+):)?(?:SIG)?(\w+?)(?:@(\d{1,5}))?", options.get("--signal", ""))
    if asked is None:
        return None
    name = NUMBERS.get(asked[2], asked[2].upper())
    return name, int(asked[3] or 60), "B" in (asked[1] or "")


def _run_task(task, text, options, plan, runs, desk):
    """Start a task, and again as long as it asks for it."""
    while task.starts < MOST_STARTS:
        task.starts += 1
        task.clock = 0.0
        task.requeue = task.killed = False
        task.code = _run_script(task, text, options, plan, runs, desk)
        if task.killed:
            task.state = "TIMEOUT"
        else:
            task.state = "FAILED" if task.code else "COMPLETED"
        if task.killed or not task.requeue:
            return
    task.state = "NEVER ENDS"


def _run_script(task, text, options, plan, runs, desk):
    """Run the script once in bash, and answer what it asks; gives its exit code, −1 where it was killed."""
    code = -1
    asks, ask = os.pipe()
    answer, answers = os.pipe()
    functions, script = os.path.join(desk, "functions"), os.path.join(desk, "script")
    with open(functions, "w", encoding="utf-8") as file:
        file.write(FUNCTIONS.format(ask=ask, answer=answer))
    with open(script, "w", encoding="utf-8") as file:
        file.write(text)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": desk,
        "BASH_ENV": functions,
        "SLURM_JOB_ID": str(task.job),
        "SLURM_ARRAY_JOB_ID": str(ARRAY),
        "SLURM_ARRAY_TASK_ID": str(task.number),
        "SLURM_RESTART_COUNT": str(task.starts - 1),
        "SLURM_SUBMIT_DIR": desk,
    }
    process = subprocess.Popen(
        ["bash", script],
        cwd=desk,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(ask, answer),
        start_new_session=True,
    )
    os.close(ask)
    os.close(answer)
    try:
        _serve(process, asks, answers, lambda words: _reply(task, words, options, plan, runs, desk))
        code = process.wait(MOST_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ProtocolError(TOO_LONG) from error
    finally:
        with contextlib.suppress(OSError):  # what it started ends with it, as a job's processes do
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(asks)
        os.close(answers)
    return -1 if task.killed else code


def _serve(process, asks, answers, reply):
    """Answer one question after the other until bash has ended, or is to be killed."""
    rest, end = b"", time.monotonic() + MOST_SECONDS
    while True:
        left = end - time.monotonic()
        if left <= 0:
            raise ProtocolError(TOO_LONG)
        if not select.select([asks], [], [], min(left, 0.1))[0]:
            if process.poll() is not None:  # something that it started holds the pipe
                return
            continue
        more = os.read(asks, 1 << 16)
        if not more:
            return
        rest += more
        count, _, words = rest.partition(b"\0")
        if len(rest) > LONGEST or not count[:4].isdigit() or len(count) > 4:
            raise ProtocolError("the script writes into what is the stand-in's own")
        if words.count(b"\0") < int(count):
            continue
        code = reply([word.decode(errors="replace") for word in words.split(b"\0")[: int(count)]])
        rest = b""
        if code is None:
            process.kill()
            return
        os.write(answers, b"%d\n" % code)


def _reply(task, words, options, plan, runs, desk):
    """The code that a command returns; None where the script is killed meanwhile."""
    if words[0] == "scontrol":
        asked = words[2:] if words[1:2] == ["requeue"] else []
        itself = asked in ([f"{ARRAY}_{task.number}"], [str(task.job)])
        everybody = asked == [str(ARRAY)]
        if "--requeue" not in options or "--no-requeue" in options or not (itself or everybody):
            return 1
        task.queued.append("the whole array" if everybody else "this task")
        task.requeue = True
        return 0
    code = _train(task, bool(words[1]), words[2:], options, plan, runs, desk)
    task.killed = code is None
    return code


def _train(task, step, words, options, plan, runs, desk):
    """What `python -m minigrpo llm train` does in the time that it has."""
    asked = _arguments(words)
    out = os.path.normpath(asked.get("--out", ""))
    owner = [asked.get("--objective", ""), asked.get("--seed", "")]
    if owner not in task.pairs:
        task.pairs.append(owner)
    task.folders.add(out)
    if task.story in ("fails", "refused"):
        return {"fails": 1, "refused": 2}[task.story]
    run = runs.get(out, {"owner": owner, "saved": 0})
    must, may = "--resume" in asked, "--auto-resume" in asked
    if run["owner"] != owner or (run["saved"] and not (must or may)) or (must and not run["saved"]):
        return 2
    busy = task.story == "busy" and task.starts == 1
    ready = task.clock + (plan["seconds"] if busy else plan["loading"])
    goal = 3 if task.story == "short" else plan["updates"]
    code, done, task.clock = _in_time(task, step, asked, options, plan, ready, goal - run["saved"])
    task.made += done
    if code in (0, 130) and done:
        runs[out] = {"owner": owner, "saved": run["saved"] + done}
        _leave_files(out, desk)
    return code


def _leave_files(out, desk):
    """Leave what a script may look for: a run's files, empty."""
    if os.path.isabs(out) or out.startswith(".."):
        return
    folder = os.path.join(desk, out)
    os.makedirs(folder, exist_ok=True)
    for name in ("manifest.json", "metrics.jsonl", "checkpoint.safetensors"):
        with open(os.path.join(folder, name), "w", encoding="utf-8"):
            pass


def _in_time(task, step, asked, options, plan, ready, missing):
    """Train from second `ready` on: exit code, updates made, and the second at which it ended."""
    limit, update = plan["seconds"], plan["update"]
    finished = ready + missing * update
    name, lead, script_alone = _signal(options) or ("", 0, False)
    comes = limit - lead
    heard = bool(name) and step and not script_alone
    most = re.fullmatch(r"\d{1,4}(\.\d{1,4})?", asked.get("--max-minutes", ""))
    stop = comes if heard else math.inf
    if most:
        # before the update that would not be over in time
        stop = min(stop, max(ready, task.clock + 60 * float(most[0]) - update))
    if finished <= min(stop, limit):
        return 0, missing, finished
    if heard and name not in KNOWN and comes <= limit and comes <= stop:
        task.limits.append(f"ended by {name}, which training does not know")
        return OTHERS.get(name, 137), max(0, int((comes - ready) // update)), comes
    if heard and comes <= ready and comes <= limit:
        task.limits.append("stopped in time")
        return KNOWN[name], 0, comes
    # the update in progress may have just begun
    done = min(missing, int((stop - ready) // update) + 1) if stop < limit else missing
    end = min(finished, stop + update)
    if end > limit:
        task.limits.append(f"killed: {_why(name, step, script_alone)}")
        return None, max(0, int((limit - ready) // update)), limit
    if done == missing:
        return 0, done, end
    task.limits.append("stopped in time")
    return 130, done, end


def _why(name, step, script_alone):
    """Why training did not stop in time."""
    if not name:
        return "no signal was asked for"
    if script_alone:
        return "the signal went to the script alone"
    return "the signal came too late" if step else "the signal goes to steps, and there was none"


def _arguments(words):
    """The options of a command by name: what follows them, empty where nothing does."""
    found, name = {}, ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            found[name] = value
        elif name:
            found[name] = word
    return found


DRIVERS = {"lab10_losses_and_grads": losses_and_grads, "lab10_on_slurm": on_slurm}
