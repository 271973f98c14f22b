"""What every test has: fixed seeds, one deterministic Hypothesis profile, the paper's worked example."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # the tensors are small: a second thread costs more than it brings, in children too

import pytest
import torch

pytest.register_assert_rewrite("groups")

from groups import WorkedExample, worked_example  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)

settings.register_profile("minigrpo", derandomize=True, max_examples=100, deadline=None)
settings.load_profile("minigrpo")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def example() -> WorkedExample:
    return worked_example()
