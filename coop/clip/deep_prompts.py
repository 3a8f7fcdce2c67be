"""Prompts behind the input's: in front of further layers of the text encoder, and in the image tower."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP
from coop.clip.image_tower import ImageTower
from coop.errors import CoopError


class DeepPrompts(nn.Module):
    """What a context `ctx` (n, D) at the text encoder's input is completed by.

    Independent: text prompts P_t^1 .. P_t^(J-1) and image prompts P_v^0 .. P_v^(J-1), all learned. Coupled (MaPLe,
    Khattak et al., CVPR 2023, section 3.3): P_v^l = A_l P_t^l + b_l, with a linear map for each depth.

    Args:
        clip: the frozen CLIP; with a ViT, unless `depth_vision` is 0.
        n_ctx: n of the text prompts.
        depth_text: J of the text prompts, the context at the input included.
        n_ctx_vision: n of the image prompts; if coupled, that of the text prompts.
        depth_vision: J of the image prompts; if coupled, that of the text prompts.
        coupled: whether image prompts are linear images of text prompts.

    Raises:
        CoopError: a backbone without the layers.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        n_ctx: int,
        depth_text: int,
        n_ctx_vision: int = 0,
        depth_vision: int = 0,
        coupled: bool = False,
    ):
        super().__init__()
        of_text, of_image = ("depth", "depth") if coupled else ("depth_text", "depth_vision")
        if depth_text > clip.text_layers:
            raise CoopError(
                f"method.{of_text}={depth_text}: the text encoder of {clip.name} has {clip.text_layers} layers"
            )
        self._tower = (ImageTower(clip),) if depth_vision else ()
        if depth_vision > (layers := self._tower[0].layers if depth_vision else 0):
            raise CoopError(f"method.{of_image}={depth_vision}: the image tower of {clip.name} has {layers} layers")
        self.text = new_prompts(n_ctx, depth_text - 1, clip.text_width)
        width = self._tower[0].width if depth_vision else 0
        self.image = new_prompts(n_ctx_vision, 0 if coupled else depth_vision, width)
        self.maps = nn.ModuleList(nn.Linear(clip.text_width, width) for _ in range(2 if coupled else 0))
        # The authors' maps behind the input start as copies of one draw.
        self.maps = nn.ModuleList(
            [self.maps[0], *(copy.deepcopy(self.maps[1]) for _ in range(depth_vision - 1))] if coupled else []
        )

    def of_text(self) -> dict[int, Tensor]:
        """The text prompts (n, D) by the layer that they stand in front of."""
        return dict(enumerate(self.text, start=1))

    def of_image(self, ctx: Tensor) -> Sequence[Tensor]:
        """The image prompts (n, V) in front of layers 0, 1, ..."""
        if not self.maps:
            return list(self.image)
        return [project(prompts) for project, prompts in zip(self.maps, [ctx, *self.text], strict=True)]

    def encode_image(self, images: Tensor, ctx: Tensor, checkpoint: bool = False, normalize: bool = True) -> Tensor:
        """Images (B, 3, H, W) to image_features (B, E), with gradient in the prompts; there must be image prompts."""
        (tower,) = self._tower
        return tower(images, self.of_image(ctx), checkpoint=checkpoint, normalize=normalize)


def new_prompts(count: int, depth: int, width: int) -> nn.ParameterList:
    """Parameters (n, width), one for each depth, drawn from N(0, 0.02^2), as all methods start them."""
    return nn.ParameterList(nn.Parameter(0.02 * torch.randn(count, width)) for _ in range(depth))
