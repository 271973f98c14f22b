"""Writing results so that a reader never meets half a file."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"  # of the folder of every run, on toy tasks and of language models


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file whole: to a temporary file beside it, which is then renamed over it. Makes missing folders.

    Raises: OSError, with the path in it, where the file can't be written; what stood there before stays.
    """
    path = Path(path).resolve()  # through a link to the file it stands for
    check_regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        os.unlink(temporary)
        # a full disk does not say where
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write text whole, in UTF-8. Raises: as `write_bytes`."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> Path:
    """Write a value as indented JSON, whole. Raises: as `write_text`; ValueError for NaN or infinity."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def check_writable(path: str | Path) -> None:
    """Find out before long work whether a file can be written. Raises: OSError, with the path in it."""
    path = Path(path).resolve()
    check_regular(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise type(error)(f"{path} can't be written: {error.strerror}") from error


def check_regular(path: Path) -> None:
    """Refuse to put a file in the place of a folder or a device. Raises: OSError, with the path in it."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected the name of a file")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file: name another")
