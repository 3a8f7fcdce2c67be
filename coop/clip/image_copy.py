"""A trainable copy of the image tower."""

import copy

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, normalize


class TrainableImageTower(nn.Module):
    """A trainable copy, at least float32, of a frozen CLIP's image tower; the original stays as it is.

    In train mode batch norm keeps its statistics of the new images and dropout, where there is some, is on.

    Args:
        clip: the frozen CLIP, its image tower not released.
    """

    def __init__(self, clip: FrozenCLIP):
        super().__init__()
        visual = copy.deepcopy(clip.model.visual)
        dtype = next(visual.parameters()).dtype
        self.visual = visual.to(torch.promote_types(dtype, torch.float32)).requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), preprocessed, to image_features (B, E), L2-normalized, with gradient."""
        dtype = next(self.visual.parameters()).dtype
        features = self.visual(images.to(dtype, memory_format=torch.channels_last))
        # CoCa's towers give their tokens as well.
        return normalize(features[0] if isinstance(features, tuple) else features)
