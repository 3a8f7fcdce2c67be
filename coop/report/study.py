"""Everything a report says, before it is put into tables and figures."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from coop.report.groups import Curves, data_name, make_curves, make_settings
from coop.report.published import compare, derived_averages, stated_averages
from coop.report.records import OWN, Records, keys_of, zero_shot_beside

TEST_SET = ("split", "num_classes", "n_test", "dataset.manifest")


@dataclass
class Study:
    """The runs of a report, averaged, joined and held against the published figures."""

    records: Records
    settings: pd.DataFrame  # all averages over seeds
    curves: Curves
    published: pd.DataFrame  # all published figures
    comparisons: pd.DataFrame  # published figures beside ours, those of another setting included
    warnings: list[str]  # what must be known before figures are compared
    mixed: list[str]  # data sets of which runs have another split or another list of classes

    def beside(self, curves: Curves, places: Iterable[tuple[str, list[str]]]) -> pd.DataFrame:
        """Published figures of the same setting beside curves, on data sets and on averages.

        An average over data sets is held against the average of the figures of one published table, if that has all of
        them, and against averages that were published themselves.

        Args:
            curves: to be held against them.
            places: (name, data sets) of what is looked at.

        Returns:
            A row for each curve, place ("data"), number of shots and figure: the columns of `compare`, and "curve".
        """
        members = curves.points.drop_duplicates(["curve", "setting"])[["curve", "setting"]]
        found = members.merge(self.comparisons[self.comparisons["same_setting"]], on="setting")
        blocks = [found.iloc[:0]]
        for name, data in places:
            if len(data) == 1:
                blocks.append(found[found["data"].isin(data)])
                continue
            ours = curves.average(data).rename(columns={"mean": "ours"}).reset_index()
            points = curves.points[curves.points["data"].isin(data)]
            for averages in (derived_averages(found, data), stated_averages(self.published, self.settings, points)):
                averages = averages.astype({"shots": int}).merge(ours, on=["curve", "shots"]).assign(data=name)
                difference = 100 * averages["ours"] - averages["accuracy_percent"].astype(float)
                blocks.append(averages.assign(difference=difference.where(averages["confidence"] != "low")))
        return pd.concat([block for block in blocks if len(block)] or blocks, ignore_index=True)


def make_study(records: Records, published: pd.DataFrame) -> Study:
    """Average, join, compare."""
    runs = records.runs
    own = runs["kind"] == OWN
    # On other data, what stands beside each run comes first: it has the template of those data.
    together = pd.concat([runs[own], zero_shot_beside(runs), runs[~own]])
    settings, scores, warnings = make_settings(together)
    curves = make_curves(settings, scores, keys_of(runs))
    mixed = mixed_data(runs)
    warnings += [f"{text}; never averaged together, in separate rows" for text in mixed]
    if len(versions := sorted(runs["version"].unique())) > 1:
        warnings.append(f"the runs were written by several versions of coop: {', '.join(versions)}")
    return Study(records, settings, curves, published, compare(published, settings), warnings, mixed)


def mixed_data(runs: pd.DataFrame) -> list[str]:
    """Name the data sets of which runs have another split or another list of classes: no table should hold both."""
    texts = []
    for (dataset, classes), same in runs.groupby(["dataset", "classes"], sort=False):
        for key in (key for key in TEST_SET if key in same):
            counts = same[key].dropna().value_counts(sort=False)
            listed = (f"{value} ({count} run{'s' if count > 1 else ''})" for value, count in counts.items())
            if len(counts) > 1:
                texts.append(f"{data_name(dataset, classes)}: {key} is {', '.join(listed)}")
    return texts
