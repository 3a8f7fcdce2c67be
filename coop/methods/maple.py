"""MaPLe: deep text prompts, and image prompts that are linear images of them (Khattak et al., CVPR 2023)."""

from collections.abc import Sequence
from typing import ClassVar

from coop.clip.backbone import FrozenCLIP
from coop.clip.deep_prompts import DeepPrompts
from coop.methods.base import Count
from coop.methods.coop import ContextLength, PromptLearner, Words


class MaPLe(PromptLearner):
    """CoOp's prompt with further prompts in front of the text encoder's next layers; one linear map for each of these
    layers makes image prompts of them, so that both towers are trained together (section 3.3).

    Args:
        n_ctx: n, in both towers.
        ctx_init: words that the prompt begins with: the first n_ctx of their tokens are learned, the others stay.
        depth: J, how many layers of both towers have prompts; 1 is the input alone.
    """

    needs_images = words_stay = True
    fixed: ClassVar = {"class_specific": False, "class_token_position": "end"}

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, n_ctx: ContextLength = 2,
        ctx_init: Words | None = None, depth: Count = 9, **options,
    ):  # fmt: skip
        super().__init__(clip, classnames, n_ctx, ctx_init, **options)
        self.deep = DeepPrompts(clip, n_ctx, depth, n_ctx, depth, coupled=True)
