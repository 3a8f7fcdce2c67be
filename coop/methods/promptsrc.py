"""PromptSRC: prompts in both towers that are held near the frozen CLIP (Khattak et al., ICCV 2023)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.deep_prompts import DeepPrompts, check_depths
from coop.clip.handcrafted import HandCrafted
from coop.clip.templates import clip_templates
from coop.errors import CoopError
from coop.methods.base import Batch, check_above
from coop.methods.coop import PromptLearner


class PromptSRC(PromptLearner):
    """Prompts of IVLP, or coupled ones of MaPLe. The loss adds text_weight * mean |t - u| + image_weight * mean |f - z|
    + kl_weight * KL(teacher's || student's predictions) / (B K), with the frozen CLIP's features u, z of 60 templates
    and of the same views (equations 3 to 6); tested is a Gaussian average of the prompts over the epochs (equation 7).

    Args:
        clip: the frozen CLIP, with a ViT.
        classnames: K class names.
        n_ctx, ctx_init, depth_text, n_ctx_vision, depth_vision: as in IVLP.
        coupled: image prompts are linear images of the text prompts (MaPLe's), of their number and depth.
        gpa_mean, gpa_std: of the weights of the epochs, the first of which is 1.
        text_weight, image_weight, kl_weight: of the three terms.
        options: CoOp's own.
    """

    needs_images = needs_teacher = words_stay = True
    fixed: ClassVar = {"class_specific": False, "class_token_position": "end"}

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, n_ctx: int = 4, ctx_init: str | None = None,
                 depth_text: int = 9, n_ctx_vision: int = 4, depth_vision: int = 9, coupled: bool = False,
                 gpa_mean: float = 15.0, gpa_std: float = 1.0, text_weight: float = 25.0, image_weight: float = 10.0,
                 kl_weight: float = 1.0, **options):  # fmt: skip
        self.check(depth_text, n_ctx_vision, depth_vision, coupled, gpa_std, n_ctx, ctx_init=ctx_init, **options)
        super().__init__(clip, classnames, n_ctx, ctx_init, **options)
        self.deep = DeepPrompts(clip, n_ctx, depth_text, n_ctx_vision, depth_vision, coupled)
        self.gpa, self.weights = (gpa_mean, gpa_std), (text_weight, image_weight, kl_weight)
        self.teacher = HandCrafted(clip, self.classnames, clip_templates(80)[:60], raw=True)
        self.average = torch.nn.ParameterList(p.detach().clone().zero_() for p in self._learned())
        self.average.requires_grad_(False)

    @classmethod
    def check(
        cls, depth_text=9, n_ctx_vision=4, depth_vision=9, coupled=False, gpa_std=1.0, n_ctx=4, **options
    ) -> None:
        """Raises CoopError for options that no backbone could serve."""
        check_depths(depth_text=(depth_text, 1), n_ctx_vision=(n_ctx_vision, 1), depth_vision=(depth_vision, 1))
        if coupled and (n_ctx, depth_text) != (n_ctx_vision, depth_vision):
            raise CoopError("method.coupled=true: n_ctx_vision, depth_vision must be those of the text prompts")
        check_above(0, gpa_std=gpa_std)
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
