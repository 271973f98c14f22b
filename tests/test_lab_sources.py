"""What every lab's source has in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from grader.source import read_source

SOURCES = sorted((Path(__file__).parents[1] / "solutions").glob("lab*.py"))
ONE_THREAD = "torch.set_num_threads(1)"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem[:5])
def test_a_lab_computes_with_one_thread(path):
    """From its first cells on; lab 09 where the model is small."""
    code = [cell.source for cell in read_source(path).cells if cell.cell_type == "code"]
    if path.stem.startswith("lab09"):
        assert any(f'if BASE == "tiny":\n    {ONE_THREAD}' in source for source in code)
    else:
        assert ONE_THREAD in code[1]
    assert sum(ONE_THREAD in source for source in code) == 1
