"""Changes of a frozen CLIP's weights, put in as it runs: low-rank ones of a tower's attention (LoRA, Hu et al., ICLR
2022), and trained copies of single parameters or of the image tower. The frozen model is shared, and stays as it is.
"""

import copy
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.func import functional_call

from coop.clip.backbone import FrozenCLIP, at_least_float32, normalize
from coop.clip.blocks import Deltas, read_block, run
from coop.clip.text.plain import project, text_blocks
from coop.errors import CoopError

PROJECTIONS = ("q", "k", "v", "o")
#: CLIP-LoRA's names of layers in a tower of n.
LAYER_NAMES: dict[str, Callable[[int], slice]] = {
    "all": lambda n: slice(n),
    "bottom": lambda n: slice(n // 3),
    "mid": lambda n: slice(n // 3, 2 * (n // 3)),
    "up": lambda n: slice(2 * (n // 3), n),
    "half-bottom": lambda n: slice(n // 2),
    "half-up": lambda n: slice(n // 2, n),
    "top3": lambda n: slice(max(0, n - 3), n),
}


class LowRank(nn.Module):
    """x (..., D) to scale * B A dropout(x) (..., D); A (r, D) starts uniform in +-1/sqrt(D), B (D, r) at zero."""

    def __init__(self, width: int, rank: int, scale: float, dropout: float):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, width).uniform_(-1, 1) / math.sqrt(width))
        self.B = nn.Parameter(torch.zeros(width, rank))
        self.scale, self.dropout = scale, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(self.dropout(x), self.A.to(x.dtype)), self.B.to(x.dtype))

    def merged(self) -> Tensor:
        """What is added to the weight (D, D)."""
        return self.scale * self.B @ self.A


class LowRankTower(nn.Module):
    """Low-rank changes of chosen projections in chosen layers.

    Args:
        width: D of the tower.
        layers: how many it has.
        chosen: which of them, by number or one of `LAYER_NAMES`.
        projections: of "q", "k", "v", "o".
        options: `rank`, `scale`, `dropout` of each change.

    Raises:
        CoopError: a layer that the tower has not.
    """

    def __init__(self, width: int, layers: int, chosen: str | Sequence[int], projections: Collection[str], **options):
        super().__init__()
        chosen = layers_named(chosen, layers)
        if beyond := [layer for layer in chosen if not 0 <= layer < layers]:
            raise CoopError(f"method.layers: {beyond[0]} is not among the tower's layers 0 to {layers - 1}")
        self.count = layers
        self.changes = nn.ModuleDict(
            {f"{layer}": nn.ModuleDict({name: LowRank(width, **options) for name in projections}) for layer in chosen}
        )

    def by_layer(self) -> list[Deltas]:
        """For each layer, its changes by projection; none for the layers that were not chosen."""
        return [dict(self.changes[f"{i}"].items()) if f"{i}" in self.changes else {} for i in range(self.count)]

    @torch.no_grad()
    def merge_into(self, blocks: Sequence[nn.Module]) -> None:
        """Add the changes to the weights of a copy of the tower's blocks."""
        for layer, changes in self.changes.items():
            block = read_block(blocks[int(layer)])
            weights = dict(zip("qkv", block.in_weight.chunk(3), strict=True)) | {"o": block.out.weight}
            for name, change in changes.items():
                weights[name].add_(change.merged())


class TrainedCopies(nn.Module):
    """Trainable copies, at least float32, of the parameters of a frozen CLIP's model that are named."""

    def __init__(self, clip: FrozenCLIP, names: Sequence[str]):
        super().__init__()
        self._clip, self._caller, self.names = (clip,), (_Caller(clip.model),), names
        originals = [clip.model.get_parameter(name).detach() for name in names]
        self.weights = nn.ParameterList(nn.Parameter(at_least_float32(weight).clone()) for weight in originals)

    def originals(self) -> list[Tensor]:
        """The frozen parameters that the copies started from."""
        return [self._caller[0].model.get_parameter(name) for name in self.names]

    def forward(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """`function(*args)`, which runs the model, with the copies in place of the model's own parameters."""
        (caller,) = self._caller
        pairs = zip(self.names, self.weights, self.originals(), strict=True)
        weights = {f"model.{name}": copy.to(original.dtype) for name, copy, original in pairs}
        return functional_call(caller, weights, (function, *args))

    def encode_image(self, images: Tensor) -> Tensor:
        (clip,) = self._clip
        return normalize(self(clip.model.encode_image, clip.as_tower_takes(images)))


class _Caller(nn.Module):
    """`functional_call` swaps parameters for as long as a module's forward lasts."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        return function(*args)


class TrainableImageTower(nn.Module):
    """A trainable copy, at least float32, of a frozen CLIP's image tower; the original stays as it is.

    In train mode batch norm keeps its statistics of the new images and dropout, where there is some, is on.
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


def layer_norms(clip: FrozenCLIP) -> list[str]:
    """The parameters of all LayerNorms in both towers, by name.

    Raises:
        CoopError: an image tower without any.
    """
    modules = [(name, module) for name, module in clip.model.named_modules() if isinstance(module, nn.LayerNorm)]
    if not any(name.startswith("visual.") for name, _ in modules):
        kind = type(getattr(clip.model.visual, "trunk", clip.model.visual)).__name__
        raise CoopError(
            f"backbone {clip.name}: its image tower ({kind}) has no LayerNorm to train; ViTs have: backbone=vit_b16, "
            "vit_b32, vit_l14, laion_vit_b16, datacomp_vit_b16, siglip2_vit_b16"
        )
    modules = [(name, module) for name, module in modules if not name.startswith("text_decoder.")]
    return [f"{name}.{key}" for name, module in modules for key, _ in module.named_parameters()]


def visual_projection(clip: FrozenCLIP) -> str:
    """The name of the image tower's last matrix, from its width to E: a ViT's `proj`, of a ResNet the output
    projection of the attention pool, of timm's towers the linear head.

    Raises:
        CoopError: an image tower that ends otherwise.
    """
    visual = clip.model.visual
    name = "visual.attnpool.c_proj.weight" if isinstance(visual, ModifiedResNet) else "visual.proj"
    parameters = dict(clip.model.named_parameters())
    found = next((name for name in (name, "visual.head.proj.weight") if name in parameters), None)
    if found is None:
        kind = type(getattr(visual, "trunk", visual)).__name__
        raise CoopError(
            f"backbone {clip.name}: its image tower ({kind}) does not end in a projection that could be trained; "
            "those of backbone=tiny, rn50, rn101, vit_b16, vit_b32, vit_l14, laion_vit_b16, datacomp_vit_b16 do"
        )
    return found


def encode_text(
    clip: FrozenCLIP,
    ids: Tensor,
    deltas: Sequence[Deltas] | None = None,
    checkpoint: bool = False,
    normalize: bool = True,
    ctx: Tensor | None = None,
) -> Tensor:
    """Text features (N, E) of token ids (N, L) by a text encoder with changed weights, differentiable in these.

    Every token's states change with the weights, so that there is nothing to keep; give ids `without_padding`. A
    context (M, D) takes the place of the tokens behind [SOS].

    Raises:
        CoopError: a text encoder of another kind than open_clip's causal transformer.
    """
    tower = getattr(clip.model, "text", clip.model)
    blocks = [read_block(block) for block in text_blocks(clip.model)]
    if None in blocks or getattr(tower, "cls_emb", None) is not None or tower.attn_mask is None:
        raise CoopError(f"backbone {clip.name}: its text encoder is not open_clip's causal transformer")
    end = ids.argmax(dim=-1)
    length = ids.shape[1]
    x = F.embedding(ids, tower.token_embedding.weight)
    if ctx is not None:
        x = torch.cat([x[:, :1], ctx.to(x.dtype).expand(len(x), *ctx.shape), x[:, 1 + len(ctx) :]], dim=1)
    x = x + tower.positional_embedding[:length].to(x.dtype)
    mask = tower.attn_mask[:length, :length]
    for block, changes in zip(blocks, deltas or [{}] * len(blocks), strict=True):
        x = run(block, x, checkpoint, mask=mask, deltas=changes)
    pooled = tower.ln_final(x[torch.arange(len(ids), device=ids.device), end])
    features = at_least_float32(project(tower, pooled))
    return F.normalize(features, dim=-1) if normalize else features


def without_padding(ids: Tensor) -> Tensor:
    """Token ids (N, L), on the CPU, cut behind the last [EOS]: the rest makes no difference to a causal encoder."""
    return ids[:, : int(ids.argmax(dim=-1).max()) + 1]


def layers_named(where: str | Sequence[int], layers: int) -> list[int]:
    """The layers that one of `LAYER_NAMES` means in a tower of so many, or those that are listed."""
    return list(range(layers))[LAYER_NAMES[where](layers)] if isinstance(where, str) else list(where)
