"""A ViT image tower with prompts at its input and in front of its layers; its weights stay as they are.

The place of prompts in the sequence does not matter to a tower without a mask; here they stand behind the patches:

    [class, patches, P^0] -> norm -> layer 0 -> [class, patches, P^1] -> layer 1 -> ... -> layer L - 1 -> pool

Prompts of depth J are replaced in front of each layer l < J; from there on what became of the last ones travels along.
So of the layers in front of a replacement, a prompt's keys and values are needed and nothing else, and of the last
layer only what is pooled. No more is computed.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP, at_least_float32
from coop.clip.blocks import Deltas, read_block
from coop.clip.vits import vit_parts
from coop.errors import CoopError

if TYPE_CHECKING:
    from coop.clip.deltas import LowRankTower

#: Backbones that come with a config, for messages.
VITS = "backbone=vit_b16, vit_b32, vit_l14, laion_vit_b16, datacomp_vit_b16, siglip2_vit_b16"


class ImageTower:
    """The image tower of a frozen CLIP, not copied, for methods that put prompts into it or change its weights.

    Args:
        clip: the frozen CLIP.
        deltas: whether there will be changes of its weights.

    Raises:
        CoopError: its image tower is no ViT, or takes no changes of its weights.
    """

    def __init__(self, clip: FrozenCLIP, deltas: bool = False):
        self._clip = clip
        self._tower = vit_parts(clip.model.visual)
        if self._tower is None:
            raise CoopError(
                f"backbone {clip.name}: its image tower ({_kind(clip.model.visual)}) has no layers that prompts could "
                f"stand in front of; ViTs have: {VITS}"
            )
        if deltas and not self._tower.readable:
            kind = type(self._tower.blocks[0]).__name__
            raise CoopError(
                f"backbone {clip.name}: the layers of its image tower ({kind}) keep their weights in a form that takes "
                f"no low-rank changes; those of {VITS} do, and with method.encoder=text the text encoder's do"
            )

    def merged(self, deltas: "LowRankTower") -> nn.Module:
        """A copy of the tower with low-rank changes in its weights: images (B, 3, H, W) to features (B, E)."""
        visual = copy.deepcopy(self._clip.model.visual)
        deltas.merge_into(type(self._tower)(visual).blocks)
        return visual

    @property
    def layers(self) -> int:
        """L, the number of layers."""
        return len(self._tower.blocks)

    @property
    def width(self) -> int:
        """V, the width of the tower's states."""
        return self._tower.width

    def check_depth(self, depth: int, option: str) -> None:
        """Raises CoopError, naming the method's option, for prompts in front of more layers than there are."""
        if depth > self.layers:
            raise CoopError(f"method.{option}={depth}: the image tower of {self._clip.name} has {self.layers} layers")

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[Tensor] = (),
        deltas: Sequence[Deltas] | None = None,
        checkpoint: bool = False,
        normalize: bool = True,
    ) -> Tensor:
        """Images (B, 3, H, W), preprocessed, to image_features (B, E), with gradient in prompts and deltas.

        Args:
            images: on the device.
            prompts: J tensors (n, V), in front of layers 0 .. J - 1.
            deltas: of each layer's projections.
            checkpoint: compute activations again in the backward pass, layer by layer, to save memory.
            normalize: L2-normalize.
        """
        tower, depth, last = self._tower, len(prompts), self.layers - 1
        x = tower.embed(images)
        count = x.shape[1]
        if depth:
            x = _join(x, prompts[0])
        x = tower.enter(x)
        for layer in range(self.layers):
            if 0 < layer < depth:
                x = _join(x[:, :count], prompts[layer])
            rows = tower.pooled_rows(count) if layer == last else count if layer + 1 < depth else x.shape[1]
            x = tower.block(layer, x, rows, deltas[layer] if deltas else None, checkpoint)
        features = at_least_float32(tower.leave(x))
        return F.normalize(features, dim=-1) if normalize else features


def new_prompts(count: int, depth: int, width: int) -> nn.ParameterList:
    """Parameters (n, width), one for each depth, drawn from N(0, 0.02^2), as all methods start them."""
    return nn.ParameterList(nn.Parameter(0.02 * torch.randn(count, width)) for _ in range(depth))


def _kind(visual: nn.Module) -> str:
    """What a user knows an image tower by: its class, and what of it is unlike a plain ViT."""
    kind = type(getattr(visual, "trunk", visual)).__name__
    if not isinstance(visual, VisionTransformer):
        return kind
    other = next((block for block in visual.transformer.resblocks if read_block(block) is None), visual.attn_pool)
    return f"{kind} with {type(other).__name__}"


def _join(x: Tensor, prompts: Tensor) -> Tensor:
    return torch.cat([x, prompts.to(x.dtype).expand(x.shape[0], *prompts.shape)], dim=1)
