"""Zero-shot CLIP with one hand-written prompt per class."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.templates import check_template
from coop.methods.base import Method


class ZeroShot(Method):
    """Class weights are the text features of `template` filled with each class name (CoOp, section 3.1).

    Args:
        clip: the frozen CLIP.
        classnames: K class names.
        template: a prompt with `{}` where the class name goes; "{}" is the class name alone.
    """

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *, template: str):
        self.check(template=template)
        super().__init__(clip, classnames)
        self.template = template
        self.prompts = HandWritten(clip, self.classnames, [template])

    @classmethod
    def check(cls, template: str) -> None:
        """Raises CoopError for a template without one place for the class name."""
        check_template("method.template", template)

    def forward(self) -> Tensor:
        return self.prompts()


class HandWritten(nn.Module):
    """Text features of hand-written prompts, averaged over the templates, normalised before and after.

    Computed when first asked for, where the CLIP is by then, and kept; never saved.

    Args:
        clip: the frozen CLIP.
        classnames: K class names, their underscores replaced.
        templates: prompts with one `{}` each.
    """

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], templates: Sequence[str]):
        super().__init__()
        self._clip, self.classnames, self.templates = (clip,), classnames, templates
        self.register_buffer("features", None, persistent=False)

    def forward(self) -> Tensor:
        """text_features (K, E), L2-normalised, without gradient."""
        if self.features is None:
            with torch.inference_mode(False):  # the first to ask may be Lightning's validation
                self.features = self._encode()
        return self.features

    @torch.no_grad()
    def _encode(self) -> Tensor:
        (clip,) = self._clip
        total = sum(
            clip.encode_text([template.replace("{}", name) for name in self.classnames]) for template in self.templates
        )
        return total if len(self.templates) == 1 else normalize(total)
