"""Prompts behind the input's: in front of further layers of the text encoder, and in the image tower."""

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP
from coop.clip.image_tower import ImageTower, new_prompts
from coop.errors import CoopError


class DeepPrompts(nn.Module):
    """What a context `ctx` (n, D) at the text encoder's input is completed by.

    Independent: text prompts P_t^1 .. P_t^(J-1) and image prompts P_v^0 .. P_v^(J-1), all learned. Coupled (MaPLe,
    Khattak et al., CVPR 2023, section 3.3): P_v^l = A_l P_t^l + b_l, with a linear map for each depth.

    Args:
        clip: the frozen CLIP; with a ViT, unless `depth_vision` is 0.
        n_ctx, depth_text: n and J of the text prompts, the context at the input included.
        n_ctx_vision, depth_vision: of the image prompts; if coupled, those of the text prompts.
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
        for tower in self._tower:
            tower.check_depth(depth_vision, of_image)
        self.text = new_prompts(n_ctx, depth_text - 1, clip.text_width)
        self.image, self.maps = nn.ParameterList(), nn.ModuleList()
        if coupled:  # the authors' maps behind the input start as copies of one draw
            at_input, behind = (nn.Linear(clip.text_width, self._tower[0].width) for _ in range(2))
            self.maps.extend([at_input, *(copy.deepcopy(behind) for _ in range(depth_vision - 1))])
        elif depth_vision:
            self.image = new_prompts(n_ctx_vision, depth_vision, self._tower[0].width)

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
