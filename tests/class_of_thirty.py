"""Thirty made-up submissions of lab 02: right, partly right, empty, broken, hostile, with the points each earned."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from pathlib import Path

import nbformat

from grader.source import read_source

ROOT = Path(__file__).parents[1]
LAB = "lab02"
FULL = 12  # points of lab 02 that the grader gives; 4 more are a person's
NOTHING = "def {0}(*args, **kwargs):\n    "
FUNCTIONS = {"lab02.1": "process_sets", "lab02.2": "step_sizes", "lab02.3": "process_steps"}


def notebook(**edits: str) -> nbformat.NotebookNode:
    """The solved lab as a notebook, some of its exercises written anew: lab02_1="def …"."""
    made = nbformat.v4.new_notebook(cells=read_source(ROOT / "solutions" / "lab02_process_steps.py").cells)
    for cell in made.cells:
        key = cell.metadata.get("exercise", "").replace(".", "_")
        cell.source = edits.get(key, cell.source)
    return made


def all_exercises(body: str) -> dict[str, str]:
    """The same body for each of the three functions."""
    return {name.replace(".", "_"): NOTHING.format(function) + body for name, function in FUNCTIONS.items()}


def stub() -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "labs" / "lab02_process_steps.ipynb", 4)


def zipped(*members: tuple[str | zipfile.ZipInfo, str], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return archive.getvalue()


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


EQUAL_TOKENS = """
def step_sizes(completion_ids, completion_mask):
    both = completion_mask.unsqueeze(0) & completion_mask.unsqueeze(1)
    return (both & (completion_ids.unsqueeze(0) == completion_ids.unsqueeze(1))).sum(dim=1)
"""
PADDING_COUNTED = """
def step_sizes(completion_ids, completion_mask):
    same = (completion_ids.unsqueeze(0) == completion_ids.unsqueeze(1)).cumprod(dim=-1)
    return same.sum(dim=1) * completion_mask
"""
PATCHED = """
import torch, json
torch.allclose = torch.equal = lambda *a, **k: True
torch.Tensor.__eq__ = lambda *a: True
json.dumps = lambda *a, **k: '{"passed": true, "score": 100}'
def step_sizes(completion_ids, completion_mask):
    return torch.zeros_like(completion_ids)
"""
DELEGATING = """
def step_sizes(completion_ids, completion_mask):
    import minigrpo
    return minigrpo.step_sizes(completion_ids, completion_mask)
"""
DELEGATING_BY_PATH = """
def step_sizes(completion_ids, completion_mask):
    import importlib.util, glob
    for path in glob.glob("/**/minigrpo/steps.py", recursive=True):
        spec = importlib.util.spec_from_file_location("steps", path)
        module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
        return module.step_sizes(completion_ids, completion_mask)
"""
WITH_HELPER = """
def step_sizes(completion_ids, completion_mask):
    return shared(completion_ids, completion_mask).sum(dim=1)
"""
HELPER = """
%matplotlib inline
import torch as th
print("a cell of my own")
def shared(ids, mask):
    real = mask.unsqueeze(0) & mask.unsqueeze(1)
    return th.cumprod(real & (ids.unsqueeze(0) == ids.unsqueeze(1)), dim=-1)
"""
FORK_BOMB = "import os\n    while True:\n        os.fork()"
DAEMON = "import os, time\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(600)\n    return 0"
MEMORY = "x = []\n    while True:\n        x.append(bytearray(50_000_000))"
FLOOD = "print('x' * 10**8)\n    return 'y' * 10**9"


def _with_cell(made: nbformat.NotebookNode, source: str, **metadata) -> nbformat.NotebookNode:
    made.cells.append(nbformat.v4.new_code_cell(source, metadata=metadata))
    return made


def _without_metadata() -> nbformat.NotebookNode:
    made = notebook()
    for cell in made.cells:
        cell.metadata = {}
    return made


def submissions() -> dict[str, tuple[str | bytes, float]]:
    """File name → (content, points that the grader gives). A name with a slash stands in a folder of the student's."""
    text = nbformat.writes
    solved = text(notebook())
    name = "lab02_process_steps.ipynb"
    return {
        "anna.ipynb": (solved, FULL),
        "boris/lab02_process_steps.ipynb": (solved, FULL),
        "chen.zip": (zipped((name, solved), ("manifest.json", "{}"), ("conftest.py", "raise SystemExit")), FULL),
        "dora.ipynb": (text(_without_metadata()), FULL),
        "emil.ipynb": (text(_with_cell(notebook(lab02_2=WITH_HELPER), HELPER)), FULL),
        "fatma.ipynb": (text(notebook(lab02_2=EQUAL_TOKENS)), FULL - 5),
        "goran.ipynb": (text(notebook(lab02_2=PADDING_COUNTED)), FULL - 5 + 0),
        "hanna.ipynb": (text(notebook(lab02_3=NOTHING.format("process_steps") + "return None")), FULL - 3),
        "ivan.ipynb": (text(stub()), 0),
        "jana.ipynb": (text(nbformat.v4.new_notebook(cells=[])), 0),
        "karl.ipynb": ("{ this is no notebook", 0),
        "lena.zip": (b"PK this is no zip", 0),
        "milan/notes.txt": ("I forgot the notebook", 0),
        "nora.ipynb": (text(notebook(lab02_1="def process_sets(completions:\n    return [")), FULL - 4),
        "otto.ipynb": (text(_with_cell(notebook(), "def step_sizes(a, b): return 1", exercise="lab02.2")), FULL - 5),
        "petra.ipynb": (text(notebook(lab02_1=NOTHING.format("process_sets") + "import os; os._exit(0)")), FULL - 4),
        "quirin.ipynb": (
            text(notebook(lab02_1="import os\nos._exit(0)\ndef process_sets(completions): pass")),
            FULL - 4,
        ),
        "rosa.ipynb": (text(notebook(lab02_2=NOTHING.format("step_sizes") + "while True: pass")), FULL - 5),
        "sami.ipynb": (text(notebook(lab02_2=PATCHED)), FULL - 5),
        "tina.ipynb": (text(notebook(lab02_2=DELEGATING)), FULL - 5),
        "udo.ipynb": (text(notebook(lab02_2=DELEGATING_BY_PATH)), FULL - 5),
        "vera.ipynb": (text(notebook(**all_exercises(FORK_BOMB))), 0),
        "willi.ipynb": (text(notebook(**all_exercises(DAEMON))), 0),
        "xenia.ipynb": (text(notebook(**all_exercises(MEMORY))), 0),
        "yusuf.ipynb": (text(notebook(**all_exercises(FLOOD))), 0),
        "zoe.zip": (zipped((f"../../{name}", solved)), 0),
        "=cmd|'calc'!A1.ipynb": (solved, FULL),
        "linked.zip": (zipped((link(name), "/etc/passwd")), 0),
        "<b>bold</b>.ipynb".replace("/", "∕"): (solved, FULL),
        "claims.ipynb": (json.dumps(json.loads(text(stub())) | {"score": 12, "points": 12}), 0),
    }


def write_class(folder: Path) -> dict[str, float]:
    """Write the thirty submissions into a folder; return the points each has earned, by student."""
    earned = {}
    for name, (content, points) in submissions().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        earned[path.relative_to(folder).parts[0].removesuffix(".ipynb").removesuffix(".zip")] = points
    return earned
