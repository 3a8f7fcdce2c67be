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


def target_configs(names: Sequence[str], own: DictConfig, seed: int) -> dict[str, DictConfig]:
    """The dataset configs of `targets=[...]`, by their keys in results.json.

    Args:
        names: each the name of a data set, or a folder of class folders (its name is the key), either with ":base" or
            ":new" behind it for half of the classes; ":new" alone is the run's own data set.
        own: the run's own dataset config.
        seed: of generated splits.

    Raises:
        CoopError: an unknown name, or a config that its reader does not accept.
    """
    configs = {}
    for text in names:
        name, _, classes = text.rpartition(":") if text.rpartition(":")[2] in CLASSES else (text, "", "all")
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
    known = GlobalHydra.instance().config_loader().get_group_options("dataset")
    folder = Path(name).expanduser().resolve()
    if not name:
        return OmegaConf.create(OmegaConf.to_container(own, resolve=True))
    if name not in known and not folder.is_dir():
        near = ", ".join(difflib.get_close_matches(name, known)) or "none"
        raise CoopError(f"targets: there is no data set {name}, and no such folder; near matches: {near}")
    cfg = compose(f"dataset/{name if name in known else 'folder'}", overrides=[f"+seed={seed}"])
    if name not in known:
        cfg.dataset.path, cfg.dataset.name = str(folder), folder.name
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)["dataset"])


def read_targets(configs: dict[str, DictConfig], data_root: str | None, seed: int) -> list[Target]:
    """Read the test images of each. Raises CoopError for missing data."""
    return [
        Target(key, node, sample(read_dataset(node, data_root), -1, seed, node.classes))
        for key, node in configs.items()
    ]


def targets_of_run(cfg: DictConfig) -> list[Target]:
    """What a run tests on besides its own data set (`targets=[...]`). Raises CoopError as the two above."""
    return read_targets(target_configs(cfg.targets, cfg.dataset, cfg.seed), cfg.data_root, cfg.seed)


def check_transfer(method: Method, target: Target, learned_on: str) -> None:
    """Refuse a target whose classes mean nothing to what was learned.

    Raises:
        CoopError: which of the classes were never seen.
    """
    learned = _spaced(method.classnames)
    unseen = [name for name in _spaced(target.splits.classnames) if name not in learned]
    if unseen and not method.transfers_to_other_classes:
        raise CoopError(
            f"{target.name}: its classes are not those that this run learned on ({learned_on}; "
            f"{len(unseen)} were never seen: {', '.join(unseen[:5])}). What it learned is class-specific and "
            "means nothing for others; a unified context (method.class_specific=false) moves"
        )


def for_target(method: Method, node: DictConfig, target: Target) -> Method:
    """The trained method among the target's classes.

    Args:
        method: for the classes it was trained with.
        node: its config.
        target: already checked by `check_transfer`.
    """
    classnames = _spaced(target.splits.classnames)
    if classnames == _spaced(method.classnames):
        return method
    if not method.transfers_to_other_classes:
        return AmongClasses(method, classnames)
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
        for column, name in enumerate(_spaced(method.classnames)):
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


def ood_scores(base: Mapping[str, np.ndarray] | None, new: Mapping[str, np.ndarray] | None) -> dict[str, float]:
    """How well images of new classes are told from those of base classes, by the probability among base classes.

    Args:
        base: predictions for images of base classes.
        new: those for images of new classes, among the same base classes.

    Returns:
        "test/auroc" and "test/fpr95"; empty where one of the two is not known.
    """
    if not (base and new):
        return {}
    return as_results("test", ood_detection(base["confidence"], new["confidence"]))


def base_to_new(results: dict) -> dict[str, float]:
    """Harmonic means of the accuracies on base and on new classes.

    Args:
        results: of a run trained on base classes whose targets may hold the new ones of the same data set.

    Returns:
        By "test/harmonic_mean" and "zero_shot/harmonic_mean"; empty for other runs.
    """
    tested = results["targets"]
    base = results if "test/acc" in results else tested.get(f"{results['dataset']}:base")  # a converted prompt has none
    new = tested.get(new_classes(results))
    if base is None or new is None:
        return {}
    pairs = {name: (base[f"{name}/acc"], new[f"{name}/acc"]) for name in ("test", "zero_shot")}
    return {f"{name}/harmonic_mean": harmonic_mean(*accuracies) for name, accuracies in pairs.items()}


def _spaced(names: Sequence[str]) -> list[str]:
    return [name.replace("_", " ") for name in names]
