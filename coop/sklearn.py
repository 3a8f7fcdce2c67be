"""A classifier in scikit-learn's way: fitted on a few photographs of each class, on a frozen CLIP."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted

from coop.cli.in_process import composed, undisturbed
from coop.config import autocast_dtype
from coop.data.sampling import MIN_CLASSES, Item, Splits
from coop.errors import CoopError
from coop.evaluation.images import AnyImage, classified, name_of, opened
from coop.methods import Method
from coop.runs import CONFIG, PROMPT
from coop.runs.folder import claim_folder
from coop.runs.trained import Trained, load_trained


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """What coop.train does, as a scikit-learn estimator: all images that `fit` gets are the shots.

    `X` is a list of images wherever it is taken: paths, PIL images, or arrays of uint8, (H, W, 3) or (H, W). `y` are
    the labels, which are the class names that go into the prompt. There is no number of features.

    Args:
        backbone: a backbone of coop's configs ("tiny", "vit_b16"), or with `pretrained` a model of open_clip.
        pretrained: open_clip's tag of the weights, or a file.
        method: a method of coop's configs.
        options: further keys of coop.train's config, such as {"epochs": 10, "method.n_ctx": 4}. Without epochs, the
            method's published number for as many shots as the largest class has images.
        seed: of initial values, order and augmentation.

    Attributes:
        classes_: the labels, sorted; (K).
    """

    def __init__(
        self,
        backbone: str = "tiny",
        pretrained: str | None = None,
        method: str = "coop",
        options: Mapping[str, Any] | None = None,
        seed: int = 1,
    ):
        self.backbone, self.pretrained, self.method = backbone, pretrained, method
        self.options, self.seed = options, seed

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array, tags.input_tags.string = False, True, True
        return tags

    def fit(self, X: Sequence[AnyImage], y: Sequence[Any]) -> "FewShotClassifier":
        """Learn from images and their labels.

        Raises:
            CoopError: an image that cannot be read, fewer than two classes, or options that coop.train refuses.
        """
        images = list(X)
        check_consistent_length(images, y)
        classes, codes = np.unique(np.asarray(y), return_inverse=True)
        if len(classes) < MIN_CLASSES:
            raise CoopError(f"y: {len(classes)} classes; a classifier needs at least {MIN_CLASSES}")
        words = self._words(int(np.bincount(codes).max()))
        with undisturbed(words), tempfile.TemporaryDirectory() as folder:
            cfg, run_dir = composed(words), Path(folder)
            paths = [_as_file(image, number, run_dir / "images") for number, image in enumerate(images)]
            items = [Item(path, int(code), str(classes[code])) for path, code in zip(paths, codes, strict=True)]
            from coop.train import learn

            claim_folder(run_dir, cfg)
            learn(cfg, Splits(items, [], [], [str(name) for name in classes], "own"), run_dir)
            self._run = {name: (run_dir / name).read_bytes() for name in (CONFIG, PROMPT)}
        vars(self).pop("_trained", None)
        self.classes_ = classes
        return self

    def _words(self, shots: int) -> list[str]:
        """What would stand behind `python -m coop.train`."""
        model = [f"backbone={self.backbone}"]
        if self.pretrained is not None:
            model = ["backbone=open_clip", f"backbone.model={self.backbone}", f"backbone.pretrained={self.pretrained}"]
        fixed = [f"method={self.method}", f"seed={self.seed}", f"shots={shots}", "dataset=folder", "logger=none"]
        given = {key: v if isinstance(v, str) else json.dumps(v) for key, v in (self.options or {}).items()}
        return [*model, *fixed, *(f"{key}={text}" for key, text in given.items())]

    @cached_property
    def _trained(self) -> Trained:
        """What was learned, loaded as that of any run: training frees the image tower when it has all features."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self._run.items():
                (Path(folder) / name).write_bytes(content)
            accelerator = OmegaConf.load(Path(folder) / CONFIG).trainer.accelerator
            return load_trained(Path(folder), accelerator=accelerator)

    @property
    def method_(self) -> Method:
        """What was trained, in eval mode, on its device."""
        check_is_fitted(self)
        return self._trained.method

    def __getstate__(self) -> dict[str, Any]:
        """Without the weights of CLIP, which are loaded again where they are needed."""
        return {key: value for key, value in super().__getstate__().items() if key != "_trained"}

    def predict_proba(self, X: Sequence[AnyImage]) -> np.ndarray:
        """Probabilities (N, K) of the classes, in the order of `classes_`.

        Raises:
            NotFittedError: before `fit`.
            CoopError: an image that cannot be read.
        """
        method, autocast = self.method_, autocast_dtype(self._trained.cfg.trainer.precision)
        rows = list(classified(method, list(X), autocast))
        if failed := [row for row in rows if isinstance(row, CoopError)]:
            more = f" (and {len(failed) - 1} more of {len(rows)} images)" if len(failed) > 1 else ""
            raise CoopError(f"{failed[0]}{more}")
        return np.stack([row.numpy() for row in rows]) if rows else np.empty((0, len(self.classes_)), np.float32)

    def predict(self, X: Sequence[AnyImage]) -> np.ndarray:
        """The most probable label (N) of each image. Raises as `predict_proba`."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]


def _as_file(image: AnyImage, number: int, folder: Path) -> str:
    """The path of an image; one that has none is written into the folder, without loss."""
    if not isinstance(image, np.ndarray) and not hasattr(image, "save"):
        return str(image)
    readable = opened(image, name_of(image, number))
    if isinstance(readable, CoopError):
        raise readable
    folder.mkdir(exist_ok=True)
    path = folder / f"{number:06d}.png"
    readable.save(path)
    return str(path)
