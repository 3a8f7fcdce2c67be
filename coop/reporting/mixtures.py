"""Warnings about runs that stand in one report but must not be averaged or compared."""

from collections.abc import Iterable, Sequence

from coop.reporting.cells import data_name, frozen, group, label_part
from coop.reporting.curves import Curve, backbone_name
from coop.reporting.runs import Score

# What a study varies on purpose; the test set and the protocol have to be the same in runs that are compared.
VARIANT = ("n_ctx", "class_specific", "class_token_position")
TEST_SET = ("split", "num_classes", "n_test", "dataset.manifest")
PROTOCOL = ("augmentation", "batch_size", "precision", "tf32", "config.yaml")
APART = "never averaged together, in separate rows"


def mixture_warnings(scores: Sequence[Score], curves: Sequence[Curve]) -> list[str]:
    """Name the keys of the test set and of the protocol in which runs differ, the number of epochs included."""
    warnings = []
    for dataset, same in group(scores, lambda score: score.keys["dataset"]).items():
        # A test on new classes of what was trained on base classes is an experiment, not a mixture.
        keys = [] if "trained_on" in same[0].keys else ["classes"]
        warnings += [f"{dataset}: {text}; {APART}" for text in _differing(same, keys)]
    for (dataset, classes), same in group(scores, lambda s: (s.keys["dataset"], s.keys["classes"])).items():
        keys = [key for key in _names(same, "dataset.") if key not in TEST_SET]
        warnings += [f"{data_name(dataset, classes)}: {text}; {APART}" for text in _differing(same, keys)]
    for variant, same in group(scores, _variant).items():
        keys = [*PROTOCOL, *_names(same, "optimizer."), *_names(same, "backbone.")]
        warnings += [f"{variant}: {text}; {APART}" for text in _differing(same, keys)]
    return warnings + _differing_epochs(curves)


def mixed_data(scores: Sequence[Score]) -> list[str]:
    """Name the data sets of which runs have another split or another list of classes: no table should hold both."""
    texts = []
    for (dataset, classes), same in group(scores, lambda s: (s.keys["dataset"], s.keys["classes"])).items():
        texts += [f"{data_name(dataset, classes)}: {text}" for text in _differing(same, TEST_SET)]
    return texts


def _names(scores: Sequence[Score], prefix: str) -> list[str]:
    return sorted({key for score in scores for key in score.keys if key.startswith(prefix)})


def _variant(score: Score) -> str:
    keys = score.keys
    parts = [label_part(key, keys[key]) for key in VARIANT if key in keys]
    return ", ".join([f"{keys['method']} on {backbone_name(keys)}", *parts])


def _differing(scores: Sequence[Score], keys: Iterable[str]) -> list[str]:
    """ "key is a (2 runs), b (1 run)" for each key with several values; runs that do not have a key do not count."""
    texts = []
    for key in keys:
        values = group([score for score in scores if key in score.keys], lambda score, key=key: score.keys[key])
        if key == "config.yaml" and 0 < sum(map(len, values.values())) < len(scores):
            texts.append(f"config.yaml is not there beside {len(values['not there'])} of {len(scores)} runs")
        elif len(values) > 1:
            texts.append(f"{key} is " + ", ".join(f"{value} ({_runs(same)})" for value, same in values.items()))
    return texts


def _differing_epochs(curves: Sequence[Curve]) -> list[str]:
    """The number of epochs goes with shots and data set, by a rule; two rules make two curves."""
    texts = []
    for same in group(curves, lambda curve: frozen(curve.keys, curve.keys.keys() - {"epochs"})).values():
        if len(same) > 1:
            rules = " and ".join(str(curve.keys.get("epochs")) for curve in same)
            texts.append(f"{same[0].method} on {same[0].backbone}: epochs are {rules}; {APART}")
    return texts


def _runs(scores: Sequence[Score]) -> str:
    return f"{len(scores)} run{'s' if len(scores) > 1 else ''}"
