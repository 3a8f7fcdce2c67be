"""Cross-modal adaptation: texts are further shots of a linear classifier (Lin et al., CVPR 2023)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import check_templates
from coop.methods.base import Labelled, Method
from coop.optim.grid import Grid


class CrossModal(Method):
    """logits = scale * x W^T of L2-normalised image and text features x; W, not normalised, is trained in `prepare`.

    Args:
        templates: prompts with `{}` where the class name goes: the texts of each class.
        lr, weight_decay, batch_size: lists to choose from on the validation images; one each where there are none.
        head: linear, or after an adapter, x <- 0.2 ReLU(ReLU(x D^T) U^T) + 0.8 x.
        init, wiseft: W starts as the zero-shot weights, or at random; ends halfway between them and what was learned.
        texts: batches are half images, half texts; false: images alone.
    """

    transfers_to_other_classes = False

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, templates: list[str], lr: list[float],
        weight_decay: list[float], batch_size: list[int], iterations: int = 12800,
        head: Literal["linear", "adapter"] = "linear", wiseft: bool = False,
        init: Literal["zero_shot", "random"] = "zero_shot", texts: bool = True, scale: float = 100.0,
    ):  # fmt: skip
        self.check(templates, lr, weight_decay, batch_size, iterations)
        super().__init__(clip, classnames)
        self.grid, self.scale = Grid(lr, weight_decay, batch_size, iterations), scale
        self.init, self.wiseft, self.texts = init, wiseft, texts
        self.prompts = HandCrafted(clip, self.classnames, templates)
        k, e, d = len(classnames), clip.embed_dim, clip.embed_dim // 4
        shapes = {"weight": (e, k), "down": (e, d), "up": (d, e)} if head == "adapter" else {"weight": (e, k)}
        for name, shape in shapes.items():
            self.register_buffer(name, nn.Linear(*shape, bias=False).weight.data)
        self.fitted = tuple(shapes)

    @classmethod
    def check(cls, templates: list[str], lr: list[float], weight_decay: list[float], batch_size: list[int],
              iterations: int = 1, **_) -> None:  # fmt: skip
        """Raises CoopError for templates without a place for the class name, or an impossible grid."""
        check_templates("method.templates", templates)
        Grid(lr, weight_decay, batch_size, iterations).check()

    @classmethod
    def check_without_validation(cls, lr: list[float], weight_decay: list[float], batch_size: list[int], **_) -> None:
        """Raises CoopError where there is something to choose."""
        Grid(lr, weight_decay, batch_size, 1).check_single("validation=none")

    def prepare(self, labelled: Labelled) -> None:
        f, y, val_f, val_y = (x.to(self.clip.device) for part in ("train", "val") for x in labelled(part))
        texts = self.prompts.each().transpose(0, 1)  # (K, T, E)
        of_texts = torch.arange(len(texts), device=y.device).repeat_interleave(texts.shape[1])
        x, y = torch.cat([f.flatten(0, 1), normalize(texts.flatten(0, 1))]), torch.cat([y.repeat(len(f)), of_texts])
        zero_shot, kinds = normalize(texts.mean(dim=1)), [len(x) - len(of_texts), len(of_texts)]
        if self.init == "zero_shot":
            self.weight = zero_shot
        start, rows = [getattr(self, name) for name in self.fitted], self.grid.batches(*kinds[: 1 + self.texts])
        best, self.chosen = self.grid.best(start, self.scores, (x, y), rows, (val_f.flatten(0, 1), val_y))
        for name, tensor in zip(self.fitted, best, strict=True):
            setattr(self, name, tensor)
        self.weight = zero_shot.lerp(self.weight, 0.5 if self.wiseft else 1.0)

    def scores(self, x: Tensor, weight: Tensor, down: Tensor | None = None, up: Tensor | None = None) -> Tensor:
        """Logits (B, S, K) of x (B, E) and S heads."""
        if down is None:
            return self.scale * linear(x, weight.flatten(0, 1)).unflatten(1, weight.shape[:2])
        x = 0.2 * relu(relu(x @ down.mT) @ up.mT) + 0.8 * x
        return self.scale * (x @ weight.mT).transpose(0, 1)

    def logits(self, image_features: Tensor) -> Tensor:
        with torch.autocast(image_features.device.type, enabled=False):
            return self.scores(image_features, *(getattr(self, name)[None] for name in self.fitted))[:, 0]
