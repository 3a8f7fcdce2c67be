"""PromptSRC: prompts in both towers that are held near the frozen CLIP (Khattak et al., ICCV 2023)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.deep_prompts import DeepPrompts
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import clip_templates
from coop.errors import CoopError
from coop.methods.base import Batch, Count, Positive, Weight
from coop.methods.coop import ContextLength, PromptLearner, Words


class PromptSRC(PromptLearner):
    """Prompts of IVLP, or coupled ones of MaPLe. The loss adds text_weight * mean |t - u| + image_weight * mean |f - z|
    + kl_weight * KL(teacher's || student's predictions) / (B K), with the frozen CLIP's features u, z of 60 templates
    and of the same views (equations 3 to 6); tested is a Gaussian average of the prompts over the epochs (equation 7).

    Args:
        n_ctx, ctx_init, depth_text, n_ctx_vision, depth_vision: as in IVLP.
        coupled: image prompts are linear images of the text prompts (MaPLe's), of their number and depth.
        gpa_mean, gpa_std: of the weights of the epochs, the first of which is 1.
        text_weight, image_weight, kl_weight: of the three terms.
    """

    needs_images = needs_teacher = words_stay = True
    fixed: ClassVar = {"class_specific": False, "class_token_position": "end"}

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, n_ctx: ContextLength = 4,
        ctx_init: Words | None = None, depth_text: Count = 9, n_ctx_vision: Count = 4, depth_vision: Count = 9,
        coupled: bool = False, gpa_mean: float = 15.0, gpa_std: Positive = 1.0, text_weight: Weight = 25.0,
        image_weight: Weight = 10.0, kl_weight: Weight = 1.0, **options,
    ):  # fmt: skip
        super().__init__(clip, classnames, n_ctx, ctx_init, **options)
        self.deep = DeepPrompts(clip, n_ctx, depth_text, n_ctx_vision, depth_vision, coupled)
        self.gpa, self.weights = (gpa_mean, gpa_std), (text_weight, image_weight, kl_weight)
        self.teacher = HandCrafted(clip, self.classnames, clip_templates(80)[:60], raw=True)
        self.average = torch.nn.ParameterList(p.detach().clone().zero_() for p in self._learned())
        self.average.requires_grad_(False)

    @classmethod
    def check(cls, depth_text=9, n_ctx_vision=4, depth_vision=9, coupled=False, n_ctx=4, **options) -> None:
        if coupled and (n_ctx, depth_text) != (n_ctx_vision, depth_vision):
            raise CoopError("method.coupled=true: n_ctx_vision, depth_vision must be those of the text prompts")
        super().check(n_ctx=n_ctx, **options)

    def _learned(self) -> list[Tensor]:
        return [self.ctx, *self.deep.parameters()]

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        t, u, f, z = self.text_features(), normalize(self.teacher()), batch.image_features, batch.teacher_features
        logits, aim = self.logits_of(f, t), self.logits_of(z, u)
        kl = F.kl_div(logits.log_softmax(1), aim.log_softmax(1), reduction="sum", log_target=True) / logits.numel()
        of_text, of_image, of_kl = self.weights
        held = of_text * (t - u).abs().mean() + of_image * (f - z).abs().mean() + of_kl * kl
        return F.cross_entropy(logits, batch.labels) + held, logits

    @torch.no_grad()
    def on_epoch_end(self, epoch: int, epochs: int) -> None:
        mean, std = self.gpa
        weights = torch.exp(-((torch.arange(1.0, epochs + 1) - mean) ** 2) / (2 * std**2))
        share = (weights / weights.sum())[epoch].item()
        for average, learned in zip(self.average, self._learned(), strict=True):
            average += share * learned
            if epoch + 1 == epochs:
                learned.copy_(average)
