"""IVLP: independent prompts in both towers (the baseline of MaPLe, Khattak et al., CVPR 2023, table 1)."""

from collections.abc import Sequence
from typing import ClassVar

from coop.clip.backbone import FrozenCLIP
from coop.clip.deep_prompts import DeepPrompts, check_depths
from coop.methods.coop import PromptLearner


class IVLP(PromptLearner):
    """CoOp's prompt with further prompts in front of the text encoder's next layers, and as many in the image tower.

    Attributes:
        ctx: the text prompts at the input, (n, D).
        deep: all others.

    Args:
        clip: the frozen CLIP, with a ViT unless `depth_vision` is 0.
        classnames: K class names.
        n_ctx: n of the text prompts.
        ctx_init: words that the prompt begins with: the first n_ctx of their tokens are learned, the others stay.
        depth_text: how many layers have text prompts; 1 is the input alone.
        n_ctx_vision: n of the image prompts.
        depth_vision: how many layers of the image tower have prompts; 0 for the language alone.
        options: CoOp's own.
    """

    words_stay = True
    fixed: ClassVar = {"class_specific": False, "class_token_position": "end"}

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, n_ctx: int = 2, ctx_init: str | None = None,
                 depth_text: int = 9, n_ctx_vision: int = 2, depth_vision: int = 9, **options):  # fmt: skip
        self.check(depth_text, n_ctx_vision, depth_vision, n_ctx=n_ctx, ctx_init=ctx_init, **options)
        super().__init__(clip, classnames, n_ctx, ctx_init, **options)
        self.needs_images = depth_vision > 0
        self.deep = DeepPrompts(clip, n_ctx, depth_text, n_ctx_vision, depth_vision)

    @classmethod
    def check(cls, depth_text: int = 9, n_ctx_vision: int = 2, depth_vision: int = 9, **options) -> None:
        """Raises CoopError for depths and numbers of prompts that no backbone could have."""
        check_depths(depth_text=(depth_text, 1), n_ctx_vision=(n_ctx_vision, 1), depth_vision=(depth_vision, 0))
        super().check(**options)
