"""The last layer of an image tower apart from all before it: what comes into it is computed once, it alone is trained.

That layer is a ViT's last block with its final norm and projection, or a ResNet's attention pool (partial fine-tuning
of cross-modal adaptation, Lin et al., CVPR 2023).
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.func import functional_call

from coop.clip.local import resnet_map
from coop.clip.vits import kind_of, vit_parts
from coop.errors import CoopError

if TYPE_CHECKING:
    from coop.clip.backbone import FrozenCLIP

PART = 128  # images that should go through the last layer at once: those of a whole data set take too much memory


def into_last_layer(visual: nn.Module, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) to what comes into the last layer: a ViT's states (B, S, V), a ResNet's map (B, C, h, w)."""
    if isinstance(visual, ModifiedResNet):
        return resnet_map(visual, images)
    vit = vit_parts(visual)
    x = vit.enter(vit.embed(images))
    for layer in range(len(vit.blocks) - 1):
        x = vit.block(layer, x, x.shape[1], None, False)
    return x


class LastLayer(nn.Module):
    """A copy, at least float32, of the last layer of a frozen CLIP's image tower.

    Args:
        clip: the frozen CLIP, its image tower not released.

    Raises:
        CoopError: an image tower whose last layer is not known.
    """

    def __init__(self, clip: "FrozenCLIP"):
        super().__init__()
        visual = clip.model.visual
        if isinstance(visual, ModifiedResNet):
            self.visual, self.vit = copy.deepcopy(visual.attnpool), ()
        else:
            vit = vit_parts(visual)
            if vit is None or not vit.readable:
                raise CoopError(
                    f"backbone {clip.name}: the last layer of its image tower ({kind_of(visual)}) cannot be trained "
                    "apart; those of OpenAI's ResNets and of ViTs can: backbone=rn50, rn101, vit_b16, vit_b32, vit_l14"
                )
            self.vit = (type(vit)(copy.deepcopy(visual)),)
            self.vit[0].drop_all_but_last()
            self.visual = self.vit[0].visual
        dtype = torch.promote_types(next(self.visual.parameters()).dtype, torch.float32)
        self.visual.to(dtype).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """What comes into the last layer to image_features (B, E), not normalized."""
        if not self.vit:
            return self.visual(x)
        (vit,) = self.vit
        return vit.leave(vit.block(0, x, vit.pooled_rows(x.shape[1]), None, False))

    def by_each(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """image_features (S, B, E), L2-normalized, by S such layers.

        Args:
            x: what comes into the last layer, of B images.
            tensors: (S, ...) in place of each parameter, in their order.
        """
        names = [name for name, _ in self.named_parameters()]
        layers = [dict(zip(names, each, strict=True)) for each in zip(*tensors, strict=True)]
        return torch.stack([F.normalize(functional_call(self, layer, x), dim=-1) for layer in layers])
