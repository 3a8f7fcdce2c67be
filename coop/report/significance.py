"""Intervals over seeds, and which differences between methods are larger than chance."""

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

LEVEL = 0.05
FEWEST = 6  # seeds: with fewer, no outcome of Wilcoxon's test is below LEVEL


def half_width(sd: pd.Series, n: pd.Series) -> pd.Series:
    """Half of the 95 % t-interval of a mean, from sample deviations and numbers of values; NaN for a single value."""
    return pd.Series(stdtrit((n - 1).where(n > 1), 1 - LEVEL / 2) * sd / np.sqrt(n), index=sd.index)


def paired(scores: pd.DataFrame, reference: int) -> pd.DataFrame:
    """Each method against one of them, over the seeds that both have.

    Args:
        scores: (methods, seeds); NaN where a method does not have a seed.
        reference: the row to compare with.

    Returns:
        By method: "n" (shared seeds), "difference" (its mean), "half" (of its 95 % t-interval), "p" (paired t-test) and
        "p_wilcoxon" (signed-rank test, from six seeds on), both after Holm's correction for all methods compared. NaN
        where too few seeds are shared or all have the same difference, and in the row of the reference.
    """
    differences = scores - scores.loc[reference]
    found = differences.agg(["count", "mean", "std"], axis=1).set_axis(["n", "difference", "sd"], axis=1)
    # The same difference on all seeds says nothing of chance: both may be zero-shot, or the test images few.
    found["sd"] = found["sd"].where(found["sd"] > 1e-9)
    found["half"] = half_width(found["sd"], found["n"])
    t = (found["difference"] / (found["sd"] / np.sqrt(found["n"]))).abs()
    others = found.index != reference
    found["p"] = holm(pd.Series(2 * stdtr(found["n"] - 1, -t), found.index).where(others))
    found["p_wilcoxon"] = holm(differences.apply(_wilcoxon, axis=1).where(others & found["p"].notna()))
    return found.drop(columns="sd").where(pd.Series(others, found.index), np.nan)


def _wilcoxon(differences: pd.Series) -> float:
    """Two-sided p of the signed-rank test, exact with ties, too; seeds without a difference are left out.

    scipy's is the same, but takes half a second for ten seeds where two differences are equal.
    """
    values = differences.dropna().round(9)
    if len(values) < FEWEST or not values.any():
        return np.nan
    values = values[values != 0]
    ranks = (2 * values.abs().rank()).astype(int)  # doubled, for ties share a rank that may be a half
    ways = np.ones(1)  # in which the signs can come to each sum of ranks
    for rank in ranks:
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    at = ranks[values > 0].sum()
    return min(1.0, 2 * min(ways[: at + 1].sum(), ways[at:].sum()) / ways.sum())


def holm(p: pd.Series) -> pd.Series:
    """Holm's step-down correction; NaN counts as no test."""
    ascending = p.dropna().sort_values()
    corrected = (ascending * np.arange(len(ascending), 0, -1)).cummax().clip(upper=1)
    return corrected.reindex(p.index)
