"""Tests on other data than a method was trained on: shifted domains, other data sets, new classes."""

import difflib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from coop.config import CLASSES, build_method, check_dataset
from coop.data.features import FeatureExtractor
from coop.data.readers import read_dataset
from coop.data.sampling import Splits, sample
from coop.errors import CoopError
from coop.evaluation.metrics import as_results, features_for, predict, score
from coop.evaluation.predictions import OOD, ood_detection
from coop.methods import Method
from coop.methods.zero_shot import ZeroShot
from coop.runs.base_to_new import harmonic_mean

log = logging.getLogger("coop")


class Target(NamedTuple):
    """A data set to test on: its key in results.json, its config, its images."""

    name: str
    dataset: DictConfig
    splits: Splits

    @property
    def classnames(self) -> list[str]:
        """As methods have them, with spaces for underscores."""
        return [name.replace("_", " ") for name in self.splits.classnames]


def target_configs(names: Sequence[str], own: DictConfig, seed: int) -> dict[str, DictConfig]:
    """The dataset configs of `targets=[...]`, by their keys in results.json.

    Each entry is the name of a data set, or a folder of class folders (its name is the key), either with ":base" or
    ":new" behind it for half of the classes; ":new" alone is the run's own data set. `seed` is of generated splits.

    Raises:
        CoopError: an unknown name, or a config that its reader does not accept.
    """
    configs = {}
    for text in names:
        name, _, classes = text.rpartition(":")
        if classes not in CLASSES:
            name, classes = text, "all"
        node = _config(name, own, seed)
        node.classes = classes
        check_dataset(node)
        key = node.name if classes == "all" else f"{node.name}:{classes}"
        if key in configs:
            raise CoopError(f"targets={list(names)}: {key} stands there twice")
        configs[key] = node
    return configs


def _config(name: str, own: DictConfig, seed: int) -> DictConfig:
    """The dataset config that one entry of `targets` names, without its classes."""
    if not name:
        return OmegaConf.create(OmegaConf.to_container(own, resolve=True))
    known = GlobalHydra.instance().config_loader().get_group_options("dataset")
    if name in known:
        cfg = compose(f"dataset/{name}", overrides=[f"+seed={seed}"])
    elif (folder := Path(name).expanduser().resolve()).is_dir():
        cfg = compose("dataset/folder", overrides=[f"+seed={seed}"])
        cfg.dataset.path, cfg.dataset.name = str(folder), folder.name
    else:
        near = ", ".join(difflib.get_close_matches(name, known)) or "none"
        raise CoopError(f"targets: there is no data set {name}, and no such folder; near matches: {near}")
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)["dataset"])


def read_targets(configs: Mapping[str, DictConfig], data_root: str | None, seed: int) -> list[Target]:
    """Read the test images of each. Raises CoopError for missing data."""
    return [
        Target(key, node, sample(read_dataset(node, data_root), -1, seed, node.classes))
        for key, node in configs.items()
    ]


def check_transfer(method: Method, target: Target, learned_on: str) -> None:
    """Raises CoopError for a target whose classes mean nothing to what was learned."""
    unseen = [name for name in target.classnames if name not in method.classnames]
    if unseen and not method.transfers_to_other_classes:
        raise CoopError(
            f"{target.name}: its classes are not those that this run learned on ({learned_on}; "
            f"{len(unseen)} were never seen: {', '.join(unseen[:5])}). What it learned is class-specific and "
            "means nothing for others; a unified context (method.class_specific=false) moves"
        )


def for_target(method: Method, node: DictConfig, target: Target) -> Method:
    """The trained method (`node`: its config) among the classes of a target that `check_transfer` has let through."""
    if target.classnames == method.classnames:
        return method
    if not method.transfers_to_other_classes:
        return AmongClasses(method, target.classnames)
    node = with_published(node, target.dataset.name)
    other = build_method(node, method.clip, list(target.splits.classnames)).to(method.clip.device)
    other.load_state_dict(method.state_dict())
    other.same_classes = False
    return other


def with_published(node: DictConfig, dataset: str) -> DictConfig:
    """A method's config with the options that are published for another data set, such as its templates.

    What was set by hand stays: only a value that is published for some data set is replaced.
    """
    options = OmegaConf.to_container(node, resolve=True)
    published = options.get("published") or {}
    for key, value in published.get(dataset, {}).items():
        if key in options and options[key] in [of.get(key) for of in published.values()]:
            options[key] = value
    return OmegaConf.create(options)


class AmongClasses(Method):
    """A trained method that has to choose among some of its classes, as on ImageNet-A and -R.

    Where it learned several classes of one name, the best of them counts.

    Args:
        method: over the classes it was trained with.
        classnames: K of these.
    """

    def __init__(self, method: Method, classnames: Sequence[str]):
        super().__init__(method.clip, classnames)
        self.method, self.needs_images = method, method.needs_images
        self.feature_kind, self.images_at_once = method.feature_kind, method.images_at_once
        learned: dict[str, list[int]] = {}
        for column, name in enumerate(method.classnames):
            learned.setdefault(name, []).append(column)
        self.columns = [learned[name] for name in self.classnames]

    def encode_image(self, images: Tensor) -> Tensor:
        return self.method.encode_image(images)

    def logits(self, image_features: Tensor) -> Tensor:
        logits = self.method.logits(image_features)
        return torch.stack([logits[:, columns].amax(dim=1) for columns in self.columns], dim=1)


def test_targets(
    method: Method,
    node: DictConfig,
    targets: Sequence[Target],
    extractor: FeatureExtractor,
    frozen: Mapping[str, Tensor],
    ood: str | None,
) -> tuple[dict[str, dict], dict[str, dict]]:
    """What `targets` in results.json holds; and the predictions, by test set.

    Args:
        method: for the classes it was trained with.
        node: its config.
        targets: what to test on, already checked by `check_transfer`.
        extractor: of the frozen CLIP.
        frozen: the frozen CLIP's features (N, E) of the test images of each target.
        ood: the target, if there is one, whose images are also classified among the classes of the training.
    """
    scores, sets = {}, {}
    for target in targets:
        name, dataset, splits = target
        method_there = for_target(method, node, target)
        results, predicted, seen = beside_zero_shot(method_there, extractor, splits, dataset.template, frozen[name])
        about = {"classes": dataset.classes, "split": splits.origin, "num_classes": len(splits.classnames)}
        scores[name] = about | {"n_test": len(splits.test)} | results
        sets[f"targets/{name}"] = predicted
        if name == ood:
            sets[OOD] = predict(method, seen, extractor.autocast)
    return scores, sets


def beside_zero_shot(
    method: Method, extractor: FeatureExtractor, splits: Splits, template: str, frozen: Tensor
) -> tuple[dict[str, float], dict[str, np.ndarray], Tensor]:
    """What a method achieves on test images, and zero-shot CLIP beside it, as in results.json.

    Args:
        method: for the classes of these images.
        extractor: of the frozen CLIP.
        splits: whose test images.
        template: of zero-shot CLIP.
        frozen: the frozen CLIP's features (N, E) of them, or as the method's `feature_kind` says.

    Returns:
        The results; what the method predicts; the features as the method sees them.
    """
    started = time.perf_counter()
    labels, classes = splits.labels("test"), len(splits.classnames)
    seen = features_for(method, extractor, splits, "test", frozen)
    predicted = predict(method, seen, extractor.autocast, labels)
    results = as_results("test", score(predicted, classes))
    seconds = time.perf_counter() - started
    zero_shot = ZeroShot(method.clip, splits.classnames, template=template)
    without_training = predict(zero_shot, method.clip.pooled(frozen, extractor.kind), extractor.autocast, labels)
    results |= as_results("zero_shot", score(without_training, classes))
    return results | {"test_seconds": seconds}, predicted, seen


def new_classes(run: Mapping) -> str | None:
    """The target that holds the classes which a run has not seen, if it learned on the base classes."""
    return f"{run['dataset']}:new" if run["classes"] == "base" else None


def across_classes(
    results: dict, base: Mapping[str, np.ndarray] | None, new: Mapping[str, np.ndarray] | None
) -> dict[str, float]:
    """What follows from tests on base and on new classes, as in results.json; nothing where only one was tested.

    The harmonic means of both accuracies; and how well images of new classes are told from those of base classes
    (`ood_detection`).

    Args:
        results: of a run that was trained on base classes, or of its evaluation.
        base: predictions for images of base classes.
        new: those for images of new classes, among the same base classes.
    """
    tested, found = results["targets"], {}
    on_base = results if "test/acc" in results else tested.get(f"{results['dataset']}:base")  # a converted prompt's
    on_new = tested.get(new_classes(results))
    if on_base and on_new:
        for name in ("test", "zero_shot"):
            found[f"{name}/harmonic_mean"] = harmonic_mean(on_base[f"{name}/acc"], on_new[f"{name}/acc"])
    if base and new:
        found |= as_results("test", ood_detection(base["confidence"], new["confidence"]))
    return found
