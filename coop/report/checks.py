"""Warnings about runs that stand in one report and must not be averaged or compared."""

from collections.abc import Iterable

import pandas as pd

from coop.report.groups import Curves, backbone_name, column, data_name, label_part
from coop.report.records import is_zero_shot, keys_of

# What a study varies on purpose; the test set and the protocol have to be the same in runs that are compared.
VARIANT = ("n_ctx", "class_specific", "class_token_position")
TEST_SET = ("split", "num_classes", "n_test", "dataset.manifest")
PROTOCOL = ("augmentation", "batch_size", "precision", "tf32", "config.yaml")
APART = "never averaged together, in separate rows"


def mixture_warnings(runs: pd.DataFrame, curves: Curves) -> list[str]:
    """Name the keys of the test set and of the protocol in which runs differ, the number of epochs included."""
    warnings = []
    names = keys_of(runs)
    for dataset, same in runs.groupby("dataset", sort=False):
        # A test on new classes of what was trained on base classes is an experiment, not a mixture.
        keys = [] if same["transfer"].any() else ["classes"]
        warnings += [f"{dataset}: {text}" for text in _differing(same, keys)]
    for (dataset, classes), same in runs.groupby(["dataset", "classes"], sort=False):
        keys = sorted(key for key in names if key.startswith("dataset.") and key not in TEST_SET)
        warnings += [f"{data_name(dataset, classes)}: {text}" for text in _differing(same, keys)]
    protocol = [*PROTOCOL, *sorted(key for key in names if key.startswith(("optimizer.", "backbone.")))]
    variant = ["method", "backbone", "pretrained", *VARIANT]
    variants = pd.concat([column(runs, name) for name in variant], axis=1, keys=variant)
    for _, same in runs.groupby([variants[name] for name in variant], sort=False, dropna=False):
        keys = same.iloc[0]
        parts = [label_part(key, keys[key]) for key in VARIANT if keys.get(key) is not None]
        what = ", ".join([f"{keys['method']} on {backbone_name(keys['backbone'], keys.get('pretrained'))}", *parts])
        warnings += [f"{what}: {text}" for text in _differing(same, protocol)]
    return [f"{text}; {APART}" for text in [*warnings, *_differing_epochs(curves)]]


def mixed_data(runs: pd.DataFrame) -> list[str]:
    """Name the data sets of which runs have another split or another list of classes: no table should hold both."""
    texts = []
    for (dataset, classes), same in runs.groupby(["dataset", "classes"], sort=False):
        texts += [f"{data_name(dataset, classes)}: {text}" for text in _differing(same, TEST_SET)]
    return texts


def _differing(runs: pd.DataFrame, keys: Iterable[str]) -> list[str]:
    """ "key is a (2 runs), b (1 run)" for each key with several values; runs that do not have a key do not count."""
    texts = []
    for key in (key for key in keys if key in runs):
        counts = runs[key].dropna().value_counts(sort=False)
        if key == "config.yaml" and 0 < counts.sum() < len(runs):
            texts.append(f"config.yaml is not there beside {counts.sum()} of {len(runs)} runs")
        elif len(counts) > 1:
            listed = (f"{value} ({count} run{'s' if count > 1 else ''})" for value, count in counts.items())
            texts.append(f"{key} is " + ", ".join(listed))
    return texts


def _differing_epochs(curves: Curves) -> list[str]:
    """The number of epochs goes with shots and data set, by a rule; two rules make two curves."""
    table = curves.table[~is_zero_shot(curves.table["method"]).astype(bool)]
    but_epochs = [key for key in table if key not in ("rule", "label", "parts")]
    same = table.groupby(but_epochs, sort=False, dropna=False)["rule"]
    several = (rules for _, rules in same if len(rules) > 1)
    return [
        f"{table.loc[rules.index[0], 'method']} on {table.loc[rules.index[0], 'backbone']}: epochs are "
        + " and ".join("the published rule's" if rule == "published" else rule for rule in rules)
        for rules in several
    ]


def version_warning(runs: pd.DataFrame) -> list[str]:
    """Runs of several versions of coop may follow other rules."""
    versions = sorted(runs["version"].unique())
    return [f"the runs were written by several versions of coop: {', '.join(versions)}"] if len(versions) > 1 else []
