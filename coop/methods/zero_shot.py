"""Zero-shot CLIP with one hand-written prompt per class."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.snapshot import Snapshot
from coop.clip.templates import check_template
from coop.clip.text import text_parts
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

    Kept as long as the text tower is what it was: as `Snapshot` sees it in calls without gradients, by device and
    dtype alone in others. Never saved. They are those of the weights' own
    precision, whatever autocast the caller is under: no result depends on who asked first.

    Args:
        clip: the frozen CLIP.
        classnames: K class names, their underscores replaced.
        templates: prompts with one `{}` each.
    """

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], templates: Sequence[str]):
        super().__init__()
        self._clip, self.classnames, self.templates = (clip,), classnames, templates
        self._kept: tuple[object, Snapshot, Tensor] | None = None

    def forward(self) -> Tensor:
        """text_features (K, E), L2-normalised, without gradient."""
        (clip,) = self._clip
        if self._kept is None or not self._still_holds(*self._kept[:2], clip):
            # Lightning's validation may ask first: what it computed as inference tensors, training could not use.
            with torch.inference_mode(False), torch.autocast(clip.device.type, enabled=False):
                snapshot = Snapshot(partial(text_parts, clip.model))
                self._kept = ((clip.device, clip.dtype), snapshot, self._encode(clip))
        return self._kept[2]

    @staticmethod
    def _still_holds(where: object, snapshot: Snapshot, clip: FrozenCLIP) -> bool:
        """A step in feature space takes less time than a look at the whole text tower: that is for the others."""
        return where == (clip.device, clip.dtype) and (torch.is_grad_enabled() or snapshot.holds())

    @torch.no_grad()
    def _encode(self, clip: FrozenCLIP) -> Tensor:
        total = sum(
            clip.encode_text([template.replace("{}", name) for name in self.classnames]) for template in self.templates
        )
        return total if len(self.templates) == 1 else normalize(total)
