"""CoCoOp: a context that a small network moves for each image (Zhou et al., CVPR 2022)."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP
from coop.clip.handcrafted import HandCrafted
from coop.clip.noise import noise_for
from coop.clip.templates import Template
from coop.errors import CoopError
from coop.methods.coop import ContextLength, PromptLearner, Words

#: Prompts that are encoded at a time when nothing is trained.
PROMPTS_AT_ONCE = 4096


class CoCoOp(PromptLearner):
    """Prompts `[SOS] v1 + p .. vM + p CLASS . [EOS]` with p = meta_net(image feature): a set of prompts per image.

    Args:
        n_ctx: M; 4 if neither it nor `ctx_init` is given.
        condition: what the network sees, to find out what the image matters (arXiv 2506.23856). "image": its feature.
            "noise": in place of it a random vector of the same norm, drawn from the feature's own bits: always the same
            one for the same view of an image, whatever the batch, epoch or device count, and unrelated for any other.
            "class": for the prompt of each class, the text feature of that class's hand-crafted prompt. No image and
            no label is needed for that, and the prompts are the same for all images.
        template: the hand-crafted prompt, with `{}` where the class name goes.
        options: CoOp's others.
    """

    fixed: ClassVar = {"class_specific": False, "class_token_position": "end"}

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], n_ctx: ContextLength | None = None,
                 ctx_init: Words | None = None, *, condition: Literal["image", "noise", "class"] = "image",
                 template: Template = "a photo of a {}.", **options):  # fmt: skip
        super().__init__(clip, classnames, n_ctx or (None if ctx_init else 4), ctx_init, **options)
        hidden, linear = clip.embed_dim // 16, partial(nn.Linear, dtype=self.ctx.dtype)
        self.meta_net = nn.Sequential(linear(clip.embed_dim, hidden), nn.ReLU(), linear(hidden, clip.text_width))
        self.condition = condition
        self.teacher = HandCrafted(clip, self.classnames, [template]) if condition == "class" else None
        self.text_depends_on_image = condition != "class"
        self.images_at_once = max(1, PROMPTS_AT_ONCE // len(classnames)) if self.text_depends_on_image else 4096
        # Other images, hence other contexts, on each process; and a context for each class.
        self.encoding |= {"shard": not self.text_depends_on_image, "class_specific": condition == "class"}

    def forward(self) -> Tensor:
        if self.text_depends_on_image:
            raise CoopError("CoCoOp has text features for each image: text_features(image_features) gives (B, K, E)")
        return self._moved(self.teacher())

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """(B, K, E) for image_features (B, E), both L2-normalized; (K, E) with `condition="class"`."""
        if image_features is None or not self.text_depends_on_image:
            return super().text_features()
        return self._moved(noise_for(image_features) if self.condition == "noise" else image_features)

    def _moved(self, features: Tensor) -> Tensor:
        return self.encoder(self.ctx + self.meta_net(features.to(self.ctx.dtype))[:, None])
