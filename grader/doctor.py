"""What works on this machine, line by line, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

NEEDED = {  # a package, and what has need of it; the versions stand in requirements.txt
    "numpy": "all of it",
    "gymnasium": "the toy tasks",
    "tqdm": "progress bars",
    "matplotlib": "plots",
    "nbformat": "handing in",
    "yaml": "feedback by people",
    "transformers": "labs 09 and 10",
    "datasets": "labs 09 and 10",
    "peft": "lab 09",
    "gguf": "SmolLM2 where the Hub is out of reach",
    "math_verify": "answers that are formulas",
}
PACKAGES = {"yaml": "pyyaml", "math_verify": "math-verify"}  # other names on PyPI
PYTHONS = (3, 10), (3, 14)  # the oldest that works, the newest that was tried
FREE_GB = 1.0  # a cached SmolLM2 and some runs

Finding = tuple[bool, str, str]  # works; what; what is there, or what to do


def report() -> str:
    """Say in lines what works here and what to do about what does not; only the labs' own needs count as missing."""
    findings = [finding for look in LOOKS for finding in look()]
    lines = [
        f"{'ok     ' if works else 'missing'}  {what:18} {text}" for works, what, text in findings
    ]
    missing = sum(not works for works, *_ in findings)
    last = (
        f"Missing: {missing}; each such line says what to do."
        if missing
        else "Everything is there."
    )
    return "\n".join([*lines, "", last])


def _python() -> list[Finding]:
    low, high = (".".join(map(str, version)) for version in PYTHONS)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < PYTHONS[0]:
        return [(False, "Python", f"{found}: take one from {low} to {high}")]
    if sys.version_info[:2] > PYTHONS[1]:
        found += f"; newer than {high}, the newest that was tried"
    return [(True, "Python", found)]


def _torch() -> list[Finding]:
    if find_spec("torch") is None:
        return [(False, "torch", "pip install -r requirements.txt")]
    import torch

    cores = os.cpu_count() or 1
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name(0)
    elif torch.backends.mps.is_available():
        gpu = "Apple"
    else:
        gpu = "none; no lab needs one"
    threads = f"{torch.get_num_threads()} of torch on {cores} cores; lessons, labs and the toy commands take one"
    return [(True, "torch", torch.__version__), (True, "threads", threads), (True, "GPU", gpu)]


def _packages() -> list[Finding]:
    findings = []
    for module, purpose in NEEDED.items():
        package = PACKAGES.get(module, module)
        if find_spec(module) is None:
            findings.append((False, package, f"for {purpose}: pip install -r requirements.txt"))
        else:
            findings.append((True, package, metadata.version(package)))
    if find_spec("reasoning_gym") is None:
        text = (
            "not there, and no lab needs its tasks: pip install 'minigrpo[gym]' takes a C compiler"
        )
    else:
        text = metadata.version("reasoning-gym")
    findings.append((True, "reasoning-gym", text))
    return findings


def _kernel() -> list[Finding]:
    if find_spec("ipykernel") is None:
        return [(False, "notebooks", "no kernel for Jupyter: pip install -r requirements.txt")]
    return [
        (True, "notebooks", f"ipykernel {metadata.version('ipykernel')}, run by {sys.executable}")
    ]


def _isolation() -> list[Finding]:
    from grader.sandbox import best_isolation, weaknesses

    found = "; ".join([best_isolation(), *weaknesses()])
    return [(True, "isolation", f"{found}; matters to those who grade others' work, not to you")]


def _disk() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    text = (
        f"{free:.0f} GB free"
        if free >= FREE_GB
        else f"{free:.1f} GB free: lab 09 may need {FREE_GB:.0f}"
    )
    return [(free >= FREE_GB, "disk", text)]


def _smollm2() -> list[Finding]:
    if find_spec("transformers") is None:
        return []
    from minigrpo.llm.models import SMOLLM2_HUB, cache_folder, cached_folder, is_converted

    cached = is_converted(cache_folder() / "smollm2-135m") or cached_folder(SMOLLM2_HUB) is not None
    text = (
        "cached"
        if cached
        else "not cached; lab 09 downloads it once, or takes `tiny` for the same points"
    )
    offline = (
        "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "HF_HUB_OFFLINE is not set"
    )
    return [
        (True, "SmolLM2-135M", text),
        (True, "offline", f"{offline}; no lab but 09 ever asks the network"),
    ]


LOOKS: tuple[Callable[[], list[Finding]], ...] = (
    _python,
    _torch,
    _packages,
    _kernel,
    _isolation,
    _disk,
    _smollm2,
)
