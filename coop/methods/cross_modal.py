"""Cross-modal adaptation: texts are further shots of a linear classifier (Lin et al., CVPR 2023)."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP
from coop.clip.handcrafted import HandCrafted
from coop.clip.last_layer import LastLayer
from coop.clip.templates import Templates
from coop.methods.base import Count, Labeled, Method, Positive, Weight
from coop.optim.grid import Grid, by_each, of_kinds
from coop.system.validation import NOT_EMPTY, between

BatchSize = Annotated[int, between(2)]


class CrossModal(Method):
    """logits = scale * x W^T of L2-normalized image and text features x; W, not normalized, is trained in `prepare`.

    Args:
        templates: prompts with `{}` where the class name goes: the texts of each class.
        lr, weight_decay, batch_size: lists to choose from on the validation images; one each where there are none.
        head: linear; behind an adapter, x <- 0.2 ReLU(ReLU(x D^T) U^T) + 0.8 x; or with the image tower's last layer.
        init, wiseft: W starts as the zero-shot weights, or at random; ends halfway between them and what was learned.
        texts: batches are half images, half texts; false: images alone.
    """

    transfers_to_other_classes = False

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, templates: Templates,
        lr: Annotated[list[Positive], NOT_EMPTY], weight_decay: Annotated[list[Weight], NOT_EMPTY],
        batch_size: Annotated[list[BatchSize], NOT_EMPTY], iterations: Count = 12800, wiseft: bool = False,
        head: Literal["linear", "adapter", "partial"] = "linear", texts: bool = True,
        init: Literal["zero_shot", "random"] = "zero_shot", scale: float = 100.0,
    ):  # fmt: skip
        super().__init__(clip, classnames)
        self.grid, self.scale = Grid(lr, weight_decay, batch_size, iterations), scale
        self.head, self.init, self.wiseft, self.texts = head, init, wiseft, texts
        self.prompts = HandCrafted(clip, self.classnames, templates)
        k, e, d = len(classnames), clip.embed_dim, clip.embed_dim // 4
        for name, shape in [("weight", (e, k)), ("down", (e, d)), ("up", (d, e))][: 3 if head == "adapter" else 1]:
            self.register_buffer(name, nn.Linear(*shape, bias=False).weight.data)
        if head == "partial":
            self.feature_kind, self.images_at_once, self.last = "last_layer", 128, LastLayer(clip)
        self.fitted = tuple(self.state_dict())

    @classmethod
    def check_without_validation(cls, lr, weight_decay, batch_size, **_) -> None:
        """Raises CoopError where there is something to choose."""
        Grid(lr, weight_decay, batch_size, 1).check_single("validation=none")

    @torch.no_grad()
    def prepare(self, labeled: Labeled) -> None:
        f, y, val_f, val_y = (x.to(self.clip.device) for part in ("train", "val") for x in labeled(part))
        texts, of_texts, zero_shot = self.prompts.as_shots()
        self.weight.lerp_(zero_shot, float(self.init == "zero_shot"))
        kinds = [f.flatten(0, 1), texts][: 1 + self.texts]
        rows, val = self.grid.batches(*map(len, kinds)), ([val_f.flatten(0, 1)], val_y)
        samples = of_kinds(kinds), torch.cat([y.repeat(len(f)), of_texts])
        self.chosen = self.grid.fit(self.fitted_tensors(), self.scores, samples, rows, val)
        self.weight.lerp_(zero_shot, 0.5 * self.wiseft)

    def scores(self, x: Sequence[Tensor], weight: Tensor, *others: Tensor) -> Tensor:
        """Logits (B, S, K) by S heads, of images, or of images and then texts."""
        images = self.last.by_each(x[0], others) if self.head == "partial" else x[0]
        x = torch.cat([images, *(texts.expand(*images.shape[:-2], *texts.shape) for texts in x[1:])], dim=-2)
        if self.head == "adapter":
            x = 0.2 * by_each(by_each(x, others[0]).relu(), others[1]).relu() + 0.8 * x
        return self.scale * by_each(x, weight).transpose(0, 1)

    def logits(self, image_features: Tensor) -> Tensor:
        with torch.autocast(image_features.device.type, enabled=False):
            return self.scores([image_features], *(tensor[None] for tensor in self.fitted_tensors()))[:, 0]
