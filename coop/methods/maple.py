"""MaPLe: deep text prompts, and image prompts that are linear images of them (Khattak et al., CVPR 2023)."""

from collections.abc import Sequence

from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.deep_prompts import DeepPrompts, check_depths
from coop.methods.coop import PromptLearner, word_context


class MaPLe(PromptLearner):
    """CoOp's prompt with further prompts in front of the text encoder's next layers; one linear map for each of these
    layers makes image prompts of them, so that both towers are trained together (section 3.3).

    Attributes:
        ctx: the text prompts at the input, (n, D).
        deep: the others, and the linear maps.

    Args:
        clip: the frozen CLIP, with a ViT.
        classnames: K class names.
        n_ctx: n, in both towers.
        ctx_init: words that the prompt begins with: the first n_ctx of their tokens are learned, the others stay.
        depth: J, how many layers of both towers have prompts; 1 is the input alone.
        options: CoOp's own.
    """

    needs_images = True

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, n_ctx: int = 2, ctx_init: str | None = None,
                 depth: int = 9, **options):  # fmt: skip
        self.check(depth, n_ctx=n_ctx, **options)
        prompt = f"{ctx_init} {{}}." if ctx_init else None
        super().__init__(clip, classnames, n_ctx, prompt_template=prompt, **options)
        if ctx_init:
            self.ctx.data = word_context(clip, ctx_init)[:n_ctx]
        self.deep = DeepPrompts(clip, n_ctx, depth, n_ctx, depth, coupled=True)

    @classmethod
    def check(cls, depth: int = 9, ctx_init: str | None = None, **options) -> None:
        """Raises CoopError for options that no backbone could serve."""
        check_depths(depth=(depth, 1))
        super().check(**options)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.deep.encode_image(images, self.ctx, self.encoding["checkpoint"])

    def forward(self) -> Tensor:
        return self.encoder(self.ctx, self.deep.of_text())
