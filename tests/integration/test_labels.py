"""No method sees a label of the test set, nor, with validation=none, of the validation set: poisoned, they change nothing."""

from dataclasses import replace

import configs
import numpy as np
import pytest
import pytorch_lightning as pl
import small_clip as small
import torch
from methods import quick
from omegaconf import OmegaConf, open_dict

from coop import CoopError, FrozenCLIP
from coop.clip.templates import clip_templates
from coop.config import METHOD_KEYS, build_method, check, locate
from coop.data.datamodule import FewShotData
from coop.data.features import FeatureExtractor
from coop.data.readers import read_dataset
from coop.data.sampling import Splits
from coop.evaluation.metrics import features_for, predict
from coop.methods import Method
from coop.training.module import LitClassifier

METHODS = configs.names("method")
#: Those that are shown labeled features; the others see the batches of training images alone.
CHOOSING = [
    name
    for name in METHODS
    if (method := locate("method", OmegaConf.create(configs.written("method", name)))).prepare is not Method.prepare
    or method.select is not Method.select
]
CLASSES, PER_CLASS = 4, {"train": 3, "val": 3, "test": 4}
# A minute's worth of settings becomes a second's.
SHORT = {"iterations": 20, "lr": [1e-3], "weight_decay": [0.01], "batch_size": [4]}


def composed(name: str, *overrides: str):
    cfg = configs.composed(*quick(name), *overrides)
    with open_dict(cfg):
        cfg.method.update({key: value for key, value in SHORT.items() if key in cfg.method})
    return cfg


@pytest.fixture(scope="module")
def splits() -> Splits:
    whole = read_dataset(composed("zero_shot").dataset, None)
    parts = {
        part: [
            item for label in range(CLASSES) for item in [i for i in getattr(whole, part) if i.label == label][:count]
        ]
        for part, count in PER_CLASS.items()
    }
    return replace(whole, classnames=whole.classnames[:CLASSES], **parts)


def poisoned(splits: Splits, part: str) -> Splits:
    """Every label of a part is that of the next class."""
    names = splits.classnames
    wrong = [(item.label + 1) % CLASSES for item in getattr(splits, part)]
    items = [i._replace(label=k, classname=names[k]) for i, k in zip(getattr(splits, part), wrong, strict=True)]
    return replace(splits, **{part: items})


@pytest.fixture
def outcome(tmp_path_factory, monkeypatch):
    """Train a method for two epochs and predict the test images: labels, confidences and what was chosen."""
    cache = tmp_path_factory.getbasetemp() / "cache_of_labels"
    monkeypatch.setattr("coop.methods.promptsrc.clip_templates", lambda _: clip_templates(7))

    def run(name: str, splits: Splits, validation: str = "choose"):
        cfg = composed(name, f"validation={validation}")
        check(cfg)
        clip = FrozenCLIP(small.small_clip(), small.tokenizer(), name="small")
        torch.manual_seed(1)
        method = build_method(cfg.method, clip, splits.classnames)
        extractor = FeatureExtractor(
            clip, torch.device("cpu"), 0, cached=True, cache_dir=str(cache), kind=method.feature_kind
        )
        data = FewShotData(
            splits, extractor, 1, "none" if cfg.view_sampling == "per_image" else "views:2", 4, 0,
            with_images=method.needs_images, with_teacher=method.needs_teacher, view_sampling=cfg.view_sampling,
            validation=validation == "choose",
        )  # fmt: skip
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=2 if method.trained_in_steps else 0, logger=False, enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(LitClassifier(method, cfg.optimizer, 2), data)
        method.select(data.labeled)
        features = features_for(method, extractor, splits, "test", data.test_features())
        return predict(method, features), method.chosen

    return run


def same(first, second) -> bool:
    return all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", METHODS)
def test_labels_of_the_test_set_are_seen_by_no_method(outcome, splits, name):
    predictions, chosen = outcome(name, splits)
    others, chosen_then = outcome(name, poisoned(splits, "test"))
    assert same(predictions, others)
    assert chosen == chosen_then


@pytest.mark.parametrize("name", CHOOSING)
def test_without_validation_its_labels_are_seen_by_no_method(outcome, splits, name):
    predictions, _ = outcome(name, splits, "none")
    others, _ = outcome(name, poisoned(splits, "val"), "none")
    assert same(predictions, others)


@pytest.mark.parametrize("name", ["tip_adapter", "lp_pp"])
def test_otherwise_they_decide(outcome, splits, name):
    assert outcome(name, splits)[1] != outcome(name, poisoned(splits, "val"))[1]


def test_the_labels_of_the_training_set_count(outcome, splits):
    """What the tests above would see."""
    assert not same(outcome("tip_adapter", splits)[0], outcome("tip_adapter", poisoned(splits, "train"))[0])


class Chooses(Method):
    def select(self, labeled):
        pass


class ChoosesEarly(Method):
    def prepare(self, labeled):
        pass


@pytest.mark.parametrize("method", [Chooses, ChoosesEarly])
def test_a_method_that_does_not_say_what_it_does_without_is_refused(method):
    with pytest.raises(CoopError, match=f"validation=none: {method.__name__} may choose on validation images"):
        method.check_without_validation()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_project_says_it(name):
    node = composed(name).method
    options = {key: value for key, value in node.items() if key not in {*METHOD_KEYS, "_target_"}}
    locate("method", node).check_without_validation(**options)


def test_a_grid_needs_validation_images():
    cfg = configs.composed("method=cross_modal", "validation=none")
    with pytest.raises(CoopError, match=r"validation=none: nothing to choose among method\.lr=\[0.001, 0.0001\] on"):
        check(cfg)
