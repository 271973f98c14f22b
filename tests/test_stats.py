"""Intervals and pass@k."""

import numpy as np
import pytest

from minigrpo.stats import interval, pass_at_k, wilson


def test_pass_at_k_and_wilson_by_hand():
    assert pass_at_k(4, 1, 2) == pytest.approx(1 - 3 / 6)
    assert pass_at_k(4, 0, 4) == 0
    assert pass_at_k(4, 3, 2) == 1
    low, high = wilson(5, 10)
    assert (low, high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert wilson(0, 10)[0] == pytest.approx(0)


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = [
        low <= 0.3 <= high
        for low, high in (
            (row["ci_low"], row["ci_high"])
            for row in (interval(rng.binomial(1, 0.3, size=50).astype(float), 500) for _ in range(400))
        )
    ]
    assert 0.90 < np.mean(covered) < 0.98
