"""The parts of the GPU day: each a list of cases, and how one case is measured. A case's row says what it was.

A part is a function of a Machine that yields (key, measure): the key names a row, `measure()` gives its columns. What
is random is made from fixed seeds, so that a case is the same on every machine.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from packing import group_of, trl_of, updates_of  # noqa: E402

from minigrpo.llm import gpu  # noqa: E402
from minigrpo.llm.calibrate import calibrate  # noqa: E402
from minigrpo.llm.experiments import theorem  # noqa: E402
from minigrpo.llm.forward import pack_samples  # noqa: E402
from minigrpo.llm.models import TINY  # noqa: E402
from minigrpo.llm.runs import METRICS, read_metrics  # noqa: E402
from minigrpo.llm.sampling import Samples, sample_completions  # noqa: E402
from minigrpo.llm.settings import Settings  # noqa: E402
from minigrpo.llm.update import set_attention  # noqa: E402

Cases = Iterator[tuple[str, Callable[[], dict]]]
SHAPES = {  # the sizes of these models, with the width of a head; a miniature for the rehearsal
    "135M": (gpu.SHAPES["smollm2-135m"], 64),
    "1.5B": (gpu.SHAPES["Qwen/Qwen2.5-1.5B-Instruct"], 128),
    "miniature": (gpu.Shape(layers=2, hidden=32, inner=64, keys=16, vocabulary=64, tied=True), 16),
}
# (P, G, L, T, S) of about 512 to 8,192 tokens a packed tree: short answers to a long prompt, and long ones
GROUPS = ((1, 8, 256, 48, 16), (1, 8, 512, 96, 32), (1, 8, 1024, 160, 32), (1, 8, 512, 512, 64), (1, 16, 512, 512, 32))
ATTENTIONS = ("default", "flex_attention")
DTYPES = ("bfloat16", "float32")


@dataclass
class Machine:
    """Where the day is: the device, whether it is a rehearsal, the folder of runs, and when a part has to end."""

    device: str
    dry_run: bool
    runs: Path
    until: float  # of time.monotonic

    @property
    def left(self) -> float:
        """Seconds that are left to the part."""
        return self.until - time.monotonic()

    def model(self, shape: str, attention: str = "default") -> torch.nn.Module:
        """A Llama of random weights, the same each time."""
        sizes, head = SHAPES["miniature" if self.dry_run else shape]
        config = LlamaConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.hidden,
            intermediate_size=sizes.inner,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.hidden // head,
            num_key_value_heads=sizes.keys // head,
            max_position_embeddings=8192,
            tie_word_embeddings=sizes.tied,
        )
        torch.manual_seed(0)
        with torch.device(self.device):
            model = LlamaForCausalLM(config).train()
        set_attention(model, "default" if self.dry_run else attention)
        return model

    def autocast(self, dtype: str) -> torch.autocast:
        """As `llm train` computes in this dtype."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=dtype == "bfloat16")

    def timed(self, call: Callable[[], object], repeats: int = 3) -> dict[str, float]:
        """Median seconds of a call once warm, and the most memory it takes on the card beyond what is there, in MB."""
        call()
        seconds, held = [], 0
        if self.device == "cuda":
            gc.collect()  # what an earlier way has left
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
        for _ in range(1 if self.dry_run else repeats):
            self.finish()
            start = time.perf_counter()
            call()
            self.finish()
            seconds.append(time.perf_counter() - start)
        peak = (torch.cuda.max_memory_allocated() - held) / 2**20 if self.device == "cuda" else None
        return {"seconds": statistics.median(seconds), "peak_mb": peak}

    def finish(self) -> None:
        """Wait for what the card still has to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def run(self, *arguments: str, stop: Callable[[], bool] = lambda: False) -> dict:
        """Call `python -m minigrpo …` as long as the part has time.

        It is stopped by Ctrl-C's signal, after which it can go on the next time.

        Args:
            arguments: of the command.
            stop: whether to stop it earlier, asked again and again.
        """
        command = [sys.executable, "-m", "minigrpo", *arguments]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, **streams)
        while process.poll() is None and self.left > 20 and not stop():
            time.sleep(0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        _, error = process.communicate()
        if process.returncode not in (0, 130):
            raise RuntimeError(error.strip().splitlines()[-1] if error.strip() else f"exit code {process.returncode}")
        return {"finished": process.returncode == 0}


def moved(samples: Samples, device: str) -> Samples:
    """Samples on a device."""
    return Samples(*(tensor.to(device) for tensor in vars(samples).values()))


def packing(machine: Machine) -> Cases:
    """Loss and gradient of one group padded, shared and packed: seconds, memory, and the gradient's gap to padded."""
    groups = ((1, 4, 24, 12, 4),) if machine.dry_run else GROUPS
    for shape, dtype, attention, group in itertools.product(("135M", "1.5B"), DTYPES, ATTENTIONS, groups):
        if machine.dry_run and attention == "flex_attention":
            continue  # torch has no backward pass of it on a CPU
        name = f"{shape} {dtype} {attention} {'×'.join(map(str, group))}"

        def measure(shape=shape, dtype=dtype, attention=attention, group=group) -> dict:
            model = machine.model(shape, attention)
            samples, rewards = group_of(model.config.vocab_size, *group)
            samples, rewards = moved(samples, machine.device), rewards.to(machine.device)
            row = {"shape": shape, "dtype": dtype, "attention": attention, "group": list(group)}
            row["packed_tokens"] = pack_samples(samples).ids.shape[1]
            gradients = {}
            for way, update in updates_of(model, samples, rewards).items():
                if attention == "flex_attention" and way != "packed":
                    continue  # as with the default

                def call(update=update) -> None:
                    with machine.autocast(dtype):
                        update()

                row[way] = machine.timed(call)
                gradients[way] = torch.cat([weight.grad.flatten() for weight in model.parameters()]).cpu()
            if "padded" in gradients:
                theirs = gradients["padded"]
                row["gradient_gap"] = ((gradients["packed"] - theirs).norm() / theirs.norm()).item()
                row["ratio"] = row["padded"]["seconds"] / row["packed"]["seconds"]
            return row

        yield name, measure


def trl(machine: Machine) -> Cases:
    """An update inside TRL, its own and with pack=True, on one micro-batch."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    groups = ((1, 4, 24, 12, 4),) if machine.dry_run else GROUPS
    for shape, dtype, group in itertools.product(("135M", "1.5B"), DTYPES, groups):

        def measure(shape=shape, dtype=dtype, group=group) -> dict:
            from minigrpo.integrations.trl import ProcessGRPOTrainer  # without TRL the row says so

            row = {"shape": shape, "dtype": dtype, "group": list(group)}
            low = dtype == "bfloat16"
            for way, more in (("trl", {}), ("packed", {"kind": ProcessGRPOTrainer, "pack": True})):
                model = machine.model(shape)
                samples, rewards = group_of(model.config.vocab_size, *group)
                samples, rewards = moved(samples, machine.device), rewards.to(machine.device)
                options = {"use_cpu": machine.device == "cpu", "bf16": low}
                row[way] = machine.timed(trl_of(model, tokenizer, samples, rewards, options=options, **more))
                del model
            row["ratio"] = row["trl"]["seconds"] / row["packed"]["seconds"]
            return row

        yield f"{shape} {dtype} {'×'.join(map(str, group))}", measure


def speed(machine: Machine) -> Cases:
    """Tokens a second of sampling, ours and transformers' `generate`, by which TRL samples without vLLM."""
    sizes = ((2, 2, 8),) if machine.dry_run else ((8, 8, 128), (8, 16, 128), (16, 32, 128))
    for dtype, (P, G, T) in itertools.product(DTYPES, sizes):

        def measure(dtype=dtype, P=P, G=G, T=T) -> dict:
            model = machine.model("135M").eval()
            vocabulary = model.config.vocab_size
            prompts = torch.randint(3, vocabulary, (P, 64), generator=torch.Generator().manual_seed(0)).tolist()

            def ours() -> None:
                with machine.autocast(dtype):
                    sample_completions(
                        model,
                        prompts,
                        group_size=G,
                        max_new_tokens=T,
                        eos_ids=(),
                        pad_id=0,
                        generator=torch.Generator().manual_seed(0),
                    )

            ids = torch.tensor(prompts, device=machine.device).repeat_interleave(G, dim=0)
            options = {"do_sample": True, "top_k": 0, "max_new_tokens": T, "min_new_tokens": T, "pad_token_id": 0}

            def theirs() -> None:
                with machine.autocast(dtype), torch.no_grad():
                    model.generate(ids, attention_mask=torch.ones_like(ids), **options)

            row = {"dtype": dtype, "P": P, "G": G, "T": T}
            for name, call in (("ours", ours), ("generate", theirs)):
                row[name] = machine.timed(call)
                row[name]["tokens_per_second"] = P * G * T / row[name]["seconds"]
            return row

        yield f"{dtype} {P}×{G}×{T}", measure


def calibration(machine: Machine) -> Cases:
    """The cost model's constants on this card, as a run fits them at its start."""
    for shape, dtype in itertools.product(("135M", "1.5B"), DTYPES):

        def measure(shape=shape, dtype=dtype) -> dict:
            model = machine.model(shape)
            with machine.autocast(dtype):
                costs, rows = calibrate(model, ("padded", "shared", "packed"))
            return {"shape": shape, "dtype": dtype, "costs": vars(costs), "rows": [vars(row) for row in rows]}

        yield f"{shape} {dtype}", measure


def learning(machine: Machine) -> Cases:
    """Preset gpu16 with both objectives over three seeds, in run folders that go on where they were stopped."""
    out = machine.runs / "learning"
    file = machine.runs / "learning.json"
    size = ("--preset", "gpu16", "--seeds", "3")
    if machine.dry_run:
        size = ("--updates", "2", "--eval-size", "8", "--seeds", "1", "--device", "cpu")

    def measure() -> dict:
        machine.runs.mkdir(parents=True, exist_ok=True)
        ended = machine.run("llm", "compare", *size, "--out", str(out), "--json", str(file), "--quiet")
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": [], "differences": []}
        ends: dict[str, list[float]] = {}
        for row in found["rows"]:
            ends.setdefault(row["objective"], []).append(row["last"])
        means = {name: statistics.mean(last) for name, last in ends.items()}
        return (
            ended | {"runs": len(found["rows"]), "end": means} | {name: found[name] for name in ("rows", "differences")}
        )

    yield "gpu16", measure


def equality(machine: Machine) -> Cases:
    """The theorem: loss and gradient of prm against grpo, and of lambda_grpo beside it, on a group of samples."""
    for model, dtype in itertools.product(("tiny",) if machine.dry_run else ("tiny", "smollm2-135m"), DTYPES):
        task = "arithmetic" if model == "tiny" else "sums"

        def measure(model=model, dtype=dtype, task=task) -> dict:
            settings = Settings(model=model, task=task, dtype=dtype, device=machine.device, max_new_tokens=16)
            rows, other, _ = theorem(settings)
            return {"model": model, "dtype": dtype, "prm": rows[0], "lambda_grpo": other}

        yield f"{model} {dtype}", measure


def lab09(machine: Machine) -> Cases:
    """Lab 09's solution, checked; it trains on CUDA where there is one."""

    def measure() -> dict:
        notebook = machine.runs / "lab09.ipynb"
        machine.runs.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        made = [sys.executable, "-m", "jupytext", "--to", "ipynb", "--output", str(notebook)]
        subprocess.run([*made, str(ROOT / "solutions" / "lab09_language_model.py")], check=True, capture_output=True)
        done = subprocess.run(
            [sys.executable, "-m", "grader", "check", "lab09", str(notebook)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=max(machine.left, 60),
        )
        last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]
        return {"exit_code": done.returncode, "says": last, "seconds": time.perf_counter() - start}

    yield "solution", measure


def resume(machine: Machine) -> Cases:
    """A run that was stopped and goes on against an unbroken one: the largest difference of each column."""
    common = ("--device", machine.device, "--eval-size", "8", "--updates", "12", "--quiet")
    columns = ("reward", "loss", "grad_norm")

    def measure() -> dict:
        whole, broken = (machine.runs / name for name in ("whole", "broken"))
        for folder in (whole, broken):
            shutil.rmtree(folder, ignore_errors=True)
        machine.run("llm", "train", *common, "--out", str(whole))

        def begun() -> bool:
            metrics = broken / METRICS
            return metrics.exists() and len(metrics.read_text(encoding="utf-8").splitlines()) > 4

        first = machine.run("llm", "train", *common, "--out", str(broken), stop=begun)
        if first["finished"]:
            raise RuntimeError("the run was over before it could be stopped")
        machine.run("llm", "train", *common, "--out", str(broken), "--resume")
        rows = [read_metrics(folder) for folder in (whole, broken)]
        pairs = [(a[name], b[name]) for a, b in zip(*rows, strict=True) for name in columns if name in a]
        largest = max(abs(a - b) for a, b in pairs)
        return {"updates": len(rows[0]) - 1, "largest_difference": largest}

    yield "tiny", measure


PARTS: dict[str, Callable[[Machine], Cases]] = {
    "packing": packing,
    "trl": trl,
    "speed": speed,
    "calibration": calibration,
    "learning": learning,
    "equality": equality,
    "lab09": lab09,
    "resume": resume,
}
