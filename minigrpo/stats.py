"""Intervals and pass@k: how sure a number is."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np


def interval(sample: np.ndarray, resamples: int = 10_000) -> dict[str, float]:
    """Bootstrap the 95% interval of a mean, from a fixed seed: the same sample gives the same interval.

    Args:
        sample: float (n,), a value per seed.
        resamples: how many samples of n values are drawn with replacement.

    Returns:
        seeds (n), mean, and ci_low and ci_high: the 2.5% and 97.5% quantiles of the resampled means.

    Source: percentile bootstrap, Efron 1979.
    """
    places = np.random.default_rng(0).integers(len(sample), size=(resamples, len(sample)))
    means = sample[places].mean(axis=1)  # (resamples,)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "seeds": len(sample),
        "mean": float(sample.mean()),
        "ci_low": float(low),
        "ci_high": float(high),
    }


def wilson(right: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's interval of a share: the p for which p̂ lies within z standard errors of p.

        (p̂ + z²/2n ± z·√(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n),   p̂ = right / n

    Args:
        right: how many of the trials were right; may be a sum of shares.
        count: n, the trials, at least 1.
        confidence: of the interval, in (0, 1).

    Returns:
        Its lower and upper end, within [0, 1].

    Source: Wilson 1927.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / count
    weight = z * z / count
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate the chance that k completions hold a right one: 1 − C(n − c, k) / C(n, k).

    Args:
        n: completions that were sampled.
        c: how many of them were right.
        k: at most n.

    Raises:
        ZeroDivisionError: for k above n.

    Source: Chen et al. 2021, arXiv 2107.03374.
    """
    return 1 - math.comb(n - c, k) / math.comb(n, k)
