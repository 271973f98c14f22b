"""The archive for students: the course without solutions/, tests and whatever is the instructor's.

The checks under the exercises stay, and with them the functions that they compare with: who reads grader/labs finds
most of the answers, in another wording than that of solutions/.
"""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path

from minigrpo.files import write_bytes

CONTENTS = (
    "no solutions/, no model answers and no tests. The checks in grader/labs compare with functions of their own, "
    "so whoever reads these finds most answers to the code exercises"
)
FOLDERS = ("minigrpo", "grader", "labs", "lessons", "docs")
FILES = (
    "README.md",
    "LICENSE",
    "CITATION.cff",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Makefile",
    "pyproject.toml",
    "requirements.txt",
    ".gitignore",
)
LEFT_OUT = ("__pycache__", ".ipynb_checkpoints", "instructor.md", "truth.json")


def release(root: Path, out: Path) -> int:
    """Write the archive, every file under one folder named after it; return how many files it holds.

    All files have the date of the newest: the same files make the same archive.
    Raises: ValueError where `root` is not the course's folder; OSError.
    """
    missing = [
        name for name in ("minigrpo", "grader", "labs", "README.md") if not (root / name).exists()
    ]
    if missing:
        raise ValueError(
            f"release runs in the course's folder, and {root} lacks {', '.join(missing)}"
        )
    inside = [root / name for name in FILES if (root / name).exists()]
    for folder in FOLDERS:
        inside += [
            p
            for p in sorted((root / folder).rglob("*"))
            if p.is_file() and not set(p.parts) & set(LEFT_OUT)
        ]
    newest = time.gmtime(max(path.stat().st_mtime for path in inside))
    date = max(newest[:6], (1980, 1, 1, 0, 0, 0))  # a zip knows none before
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in inside:
            name = zipfile.ZipInfo(f"{out.stem}/{path.relative_to(root).as_posix()}", date)
            name.external_attr = 0o644 << 16
            file.writestr(name, path.read_bytes(), zipfile.ZIP_DEFLATED)
    write_bytes(out, archive.getvalue())
    return len(inside)
