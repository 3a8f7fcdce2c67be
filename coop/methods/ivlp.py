"""IVLP: independent prompts in both towers (the baseline of MaPLe, Khattak et al., CVPR 2023, table 1)."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from coop.clip.backbone import FrozenCLIP
from coop.clip.deep_prompts import DeepPrompts
from coop.methods.base import Count
from coop.methods.coop import ContextLength, PromptLearner, Words
from coop.system.validation import between


class IVLP(PromptLearner):
    """CoOp's prompt with further prompts in front of the text encoder's next layers, and as many in the image tower.

    Args:
        n_ctx: n of the text prompts.
        ctx_init: words that the prompt begins with: the first n_ctx of their tokens are learned, the others stay.
        depth_text: how many layers have text prompts; 1 is the input alone.
        n_ctx_vision: n of the image prompts.
        depth_vision: how many layers of the image tower have prompts; 0 for the language alone.
    """

    words_stay = True
    fixed: ClassVar = {"class_specific": False, "class_token_position": "end"}

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], *, n_ctx: ContextLength = 2,
        ctx_init: Words | None = None, depth_text: Count = 9, n_ctx_vision: Count = 2,
        depth_vision: Annotated[int, between(0)] = 9, **options,
    ):  # fmt: skip
        super().__init__(clip, classnames, n_ctx, ctx_init, **options)
        self.needs_images = depth_vision > 0
        self.deep = DeepPrompts(clip, n_ctx, depth_text, n_ctx_vision, depth_vision)
