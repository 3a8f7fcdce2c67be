"""A finished run in Python: its results, and predictions with what it learned."""

import base64
import os
from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coop.config import autocast_dtype
from coop.errors import CoopError
from coop.evaluation.images import AnyImage, predict_images
from coop.methods import Method
from coop.runs import HISTORY_PICTURE, PROMPT
from coop.runs.folder import accuracy_rows, read_results
from coop.runs.hub import local_folder
from coop.runs.prompt import load_prompt
from coop.runs.trained import Trained, load_trained


def load_run(run: str | Path, accelerator: str = "auto", config_dir: str | None = None) -> "Run":
    """A finished run, from its folder or from the Hugging Face hub.

    Args:
        run: the folder, or hf:USER/NAME, with @REVISION behind it for a branch, a tag or a commit.
        accelerator: Lightning's name of the device that predictions are made on.
        config_dir: the folder of your own configs, where the run's method is one of them.

    Raises:
        CoopError: no such folder or repository, or it is not that of a run.
    """
    return Run(local_folder(run), accelerator, config_dir)


class Run:
    """A finished run. The backbone is loaded when it is first needed.

    Attributes:
        folder: where it lies.
        classnames: K class names, in the order of the logits.
    """

    def __init__(self, folder: Path, accelerator: str = "auto", config_dir: str | None = None):
        self.folder, self._accelerator, self._config_dir = folder, accelerator, config_dir
        self.classnames = [name.replace("_", " ") for name in load_prompt(folder / PROMPT).metadata["classnames"]]

    @cached_property
    def results(self) -> dict[str, Any]:
        """What results.json holds. Raises CoopError where there is none."""
        return read_results(self.folder)

    @cached_property
    def _trained(self) -> Trained:
        return load_trained(self.folder, accelerator=self._accelerator, config_dir=self._config_dir)

    @property
    def method(self) -> Method:
        """What was trained, in eval mode, on its device. Raises CoopError as `coop.runs.trained.load_trained`."""
        return self._trained.method

    @property
    def text_features(self) -> Tensor:
        """The class weights, text_features (K, E), L2-normalized, float32, on the CPU.

        Raises:
            CoopError: the method has none, or others for each image.
        """
        method = self.method
        if method.text_depends_on_image or type(method).forward is Method.forward:
            why = "others for each image" if method.text_depends_on_image else "none"
            raise CoopError(f"method={self._trained.cfg.method.name}: has no text features of its classes, but {why}")
        with torch.no_grad():
            return method.text_features().float().cpu()

    def predict(self, images: AnyImage | Sequence[AnyImage], top: int = 5) -> list[dict[str, Any]]:
        """The most probable classes of each image, as `python -m coop.predict json=true` prints them.

        Args:
            images: paths, PIL images or arrays of uint8, (H, W, 3) or (H, W), in any mixture; or a single one.
            top: how many classes, at most all.

        Returns:
            For each image, in the same order, its "path" and under "classes" the most probable first, each with its
            "classname" and "probability". An image that cannot be read has a message under "error" in place of
            "classes"; the others are predicted all the same.
        """
        single = isinstance(images, str | os.PathLike) or hasattr(images, "convert") or getattr(images, "ndim", 4) < 4
        given = [images] if single else list(images)
        return predict_images(self.method, given, top, autocast_dtype(self._trained.cfg.trainer.precision))

    def __repr__(self) -> str:
        return f"<coop run {self.folder}: {self._title()}>"

    def _title(self) -> str:
        return "{method} on {dataset}, {shots} shots, seed {seed}, {backbone}".format_map(self.results)

    def _repr_html_(self) -> str:
        """Accuracies, and how training went, for a notebook."""
        import pandas as pd

        rows = {
            label: {"accuracy %": 100 * scores["acc"], "macro %": 100 * (scores["macro_acc"] or float("nan"))}
            for label, scores in accuracy_rows(self.results)
        }
        table = pd.DataFrame.from_dict(rows, orient="index").to_html(float_format="{:.2f}".format, na_rep="")
        picture = self.folder / HISTORY_PICTURE
        image = base64.b64encode(picture.read_bytes()).decode() if picture.is_file() else ""
        drawn = f'<img src="data:image/png;base64,{image}" style="max-width: 100%">' if image else ""
        return f"<p><b>{escape(self._title())}</b><br>{escape(str(self.folder))}</p>{table}{drawn}"
