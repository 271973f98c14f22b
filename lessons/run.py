"""Run lessons in place, each from top to bottom in a fresh kernel: `python lessons/run.py 02 04`, or all of them.

A lesson is committed with the outputs of one such run. What is written holds nothing that changes by itself: no
times, no progress bars, no metadata but a cell's `tags`, `alt` (what its figure shows, in words) and `rtol` (how far a
number in a cell tagged `key-numbers` may lie from the committed one). tests/test_lessons.py checks the rest.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode
from PIL import Image  # matplotlib brings it

FOLDER = Path(__file__).resolve().parent
KEPT = ("tags", "alt", "rtol")  # of a cell's metadata
PNG = "image/png"
WIDGET = "application/vnd.jupyter.widget-view+json"  # tqdm's bars in a notebook
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read(path: Path) -> NotebookNode:
    """Read a notebook as it stands."""
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def execute(notebook: NotebookNode, *, timeout: int = 300) -> float:
    """Run all cells of a notebook in a fresh kernel, offline and on this checkout, and leave clean outputs in it.

    Args: notebook, changed in place; timeout: of one cell, in seconds.
    Returns: the seconds it took, with the kernel's start.
    Raises: CellExecutionError for a cell that raises, CellTimeoutError for one that runs too long.
    """
    paths = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    begin = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=env)
    seconds = time.perf_counter() - begin
    clean(notebook)
    return seconds


def clean(notebook: NotebookNode) -> None:
    """Remove from a notebook what another run would change though nothing happened."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in KEPT if key in cell.metadata})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
            for output in cell.outputs:
                if "metadata" in output:
                    output.metadata = {}
                if PNG in output.get("data", {}):
                    output.data[PNG] = small(output.data[PNG])


def small(png: str) -> str:
    """Give a figure (PNG in base64) no more than 128 colours: enough for lines and text, and a third of the size."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.mode == "P":
        return png
    file = io.BytesIO()
    image.convert("RGB").quantize(128).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _is_progress(output: NotebookNode) -> bool:
    """Say whether an output is a progress bar: a widget, or a line of stderr that rewrites itself."""
    if output.output_type == "stream":
        return output.name == "stderr" and "\r" in output.text
    return WIDGET in output.get("data", {})


def main() -> None:
    """Run the lessons that the arguments name."""
    parser = argparse.ArgumentParser(description="Run lessons in place, each in a fresh kernel.")
    parser.add_argument("lessons", nargs="*", help="how their names begin, say 02 or 04_the; all where none is given")
    begins = tuple(parser.parse_args().lessons) or ("",)
    paths = sorted(path for path in FOLDER.glob("*.ipynb") if path.name.startswith(begins))
    unknown = [begin for begin in begins if not any(path.name.startswith(begin) for path in paths)]
    if unknown:
        parser.error(f"no lesson begins with {', '.join(unknown)}: {', '.join(p.stem for p in FOLDER.glob('*.ipynb'))}")
    for path in paths:
        notebook = read(path)
        try:
            seconds = execute(notebook)
        except (CellExecutionError, CellTimeoutError) as error:
            raise SystemExit(f"{path.name} was left as it was: {error}") from error
        nbformat.write(notebook, path)
        print(f"{path.name}  {seconds:.0f} s")


if __name__ == "__main__":
    main()
