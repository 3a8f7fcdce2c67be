"""Text features of hand-crafted prompts."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize
from coop.clip.snapshot import Snapshot
from coop.clip.text.plain import text_parts


class HandCrafted(nn.Module):
    """Text features of hand-crafted prompts, averaged over the templates, normalized before and after.

    Kept as long as the text encoder is what it was: as `Snapshot` sees it in calls without gradients, by device and
    dtype alone in others. Never saved. They are those of the weights' own precision, whatever autocast the caller is
    under: no result depends on who asked first.

    Args:
        clip: the frozen CLIP.
        classnames: K class names, as they stand in the prompts.
        templates: prompts with one `{}` each.
        raw: average the features as the tower gives them, and do not normalize the average either.
    """

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], templates: Sequence[str], raw: bool = False):
        super().__init__()
        self._clip, self.classnames, self.templates, self.raw = (clip,), classnames, templates, raw
        self._kept: tuple[object, Snapshot, Tensor] | None = None

    def forward(self) -> Tensor:
        """text_features (K, E), without gradient."""
        (clip,) = self._clip
        if self._kept is None or not self._still_holds(*self._kept[:2], clip):
            # Lightning's validation may ask first: what it computed as inference tensors, training could not use.
            with torch.inference_mode(False), torch.autocast(clip.device.type, enabled=False):
                snapshot = Snapshot(partial(text_parts, clip.model))
                self._kept = ((clip.device, clip.dtype), snapshot, self._average(clip))
        return self._kept[2]

    @staticmethod
    def _still_holds(where: object, snapshot: Snapshot, clip: FrozenCLIP) -> bool:
        """A step in feature space takes less time than a look at the whole text encoder: that is for the others."""
        return where == (clip.device, clip.dtype) and (torch.is_grad_enabled() or snapshot.holds())

    def each(self) -> Tensor:
        """Features (T, K, E) of each template apart, before normalization."""
        (clip,) = self._clip
        with torch.inference_mode(False), torch.autocast(clip.device.type, enabled=False):
            return torch.stack([self._encode(clip, template) for template in self.templates])

    def as_shots(self) -> tuple[Tensor, Tensor, Tensor]:
        """Each text as a sample of its class: features (K * T, E), L2-normalized, by class, and labels; and zero-shot
        weights (K, E), L2-normalized means of each class's features before normalization.
        """
        texts = self.each().transpose(0, 1)
        labels = torch.arange(len(texts), device=texts.device).repeat_interleave(texts.shape[1])
        return normalize(texts.flatten(0, 1)), labels, normalize(texts.mean(dim=1))

    @torch.no_grad()
    def _average(self, clip: FrozenCLIP) -> Tensor:
        if self.raw:
            return self.each().mean(dim=0)
        total = sum(normalize(self._encode(clip, template)) for template in self.templates)
        return total if len(self.templates) == 1 else normalize(total)

    def _encode(self, clip: FrozenCLIP, template: str) -> Tensor:
        return clip.encode_text([template.replace("{}", name) for name in self.classnames], normalize=False)
