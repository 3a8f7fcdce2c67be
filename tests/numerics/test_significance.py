"""The leaderboard's statistics against scipy's, and its intervals against a bootstrap."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from coop.report.significance import half_width, holm, paired

SEEDS = 10


@pytest.fixture
def scores():
    """(5 methods, 10 seeds): splits that are easy for one are easy for all."""
    generator = np.random.default_rng(0)
    splits = generator.normal(0, 0.03, SEEDS)
    means = np.array([0.70, 0.705, 0.71, 0.73, 0.69])
    return pd.DataFrame(means[:, None] + splits + generator.normal(0, 0.006, (5, SEEDS)))


def test_intervals_are_those_of_scipy(scores):
    half = half_width(scores.std(axis=1), scores.count(axis=1))
    for row, values in scores.iterrows():
        low, high = stats.t.interval(0.95, SEEDS - 1, values.mean(), stats.sem(values))
        assert half[row] == pytest.approx((high - low) / 2, rel=1e-9)


def test_intervals_agree_with_a_bootstrap(scores):
    """Of the t statistic itself, whose interval may be compared at ten values (a percentile bootstrap is too narrow)."""
    values = scores.loc[0].to_numpy()
    drawn = np.random.default_rng(1).choice(values, (20000, SEEDS))
    t = (drawn.mean(axis=1) - values.mean()) / (drawn.std(axis=1, ddof=1) / SEEDS**0.5)
    low, high = np.quantile(t, [0.025, 0.975])
    standard_error = values.std(ddof=1) / SEEDS**0.5
    half = half_width(pd.Series([values.std(ddof=1)]), pd.Series([SEEDS]))[0]
    assert half == pytest.approx((high - low) / 2 * standard_error, rel=0.15)


def test_one_seed_has_no_interval():
    assert half_width(pd.Series([np.nan]), pd.Series([1])).isna().all()


def test_paired_tests_are_those_of_scipy(scores):
    found = paired(scores, 3)
    others = [0, 1, 2, 4]
    t_tests = [stats.ttest_rel(scores.loc[row], scores.loc[3]) for row in others]
    assert found.loc[others, "p"].tolist() == pytest.approx(
        holm(pd.Series([test.pvalue for test in t_tests])), rel=1e-9
    )
    ranks = holm(pd.Series([stats.wilcoxon(scores.loc[row] - scores.loc[3]).pvalue for row in others]))
    assert found.loc[others, "p_wilcoxon"].tolist() == pytest.approx(ranks.tolist())
    for row, test in zip(others, t_tests, strict=True):
        interval = test.confidence_interval()
        assert found.loc[row, "difference"] == pytest.approx((interval.low + interval.high) / 2)
        assert found.loc[row, "half"] == pytest.approx((interval.high - interval.low) / 2)
    assert found.loc[3].isna().all()


@pytest.mark.parametrize("seeds", [6, 10, 13])
def test_signed_ranks_with_ties_and_zeros_are_those_of_scipy(seeds):
    generator = np.random.default_rng(seeds)
    for differences in generator.integers(-3, 6, (3, seeds)) / 100:
        differences[0] = 0.04  # one at least is none
        found = paired(pd.DataFrame([np.zeros(seeds), differences]), 0).loc[1, "p_wilcoxon"]
        assert found == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-9)


def test_pairing_sees_what_means_alone_do_not(scores):
    """One point, a third of the spread over splits, which both methods share."""
    assert stats.ttest_ind(scores.loc[0], scores.loc[2]).pvalue > 0.1
    assert paired(scores.loc[[0, 2]], 2).loc[0, "p"] < 0.05


def test_only_shared_seeds_are_compared(scores):
    scores.iloc[1, :7] = np.nan
    scores.iloc[2, 1:] = np.nan
    found = paired(scores, 0)
    assert found["n"].tolist()[1:] == [3, 1, 10, 10]
    assert found.loc[1, "difference"] == pytest.approx((scores.loc[1] - scores.loc[0])[7:].mean())
    assert np.isnan(found.loc[1, "p_wilcoxon"]) and found.loc[1, "p"] > 0  # too few seeds for ranks
    assert np.isnan(found.loc[2, "p"]) and np.isnan(found.loc[2, "half"])


@pytest.mark.parametrize("acc", [0.5, 0.6])
def test_the_same_difference_on_all_seeds_is_not_tested(acc):
    """Two figures that no seed changes, zero-shot with one and with 80 templates."""
    found = paired(pd.DataFrame([[0.5] * 8, [acc] * 8]), 0).loc[1]
    assert found["difference"] == pytest.approx(acc - 0.5)
    assert found[["half", "p", "p_wilcoxon"]].isna().all()


def test_holm():
    """Holm (1979): 0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02."""
    assert holm(pd.Series([0.01, 0.04, np.nan, 0.03, 0.005])).tolist() == pytest.approx(
        [0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True
    )
    assert holm(pd.Series([0.5, 0.9])).tolist() == [1.0, 1.0]
