"""The parts of a ViT image tower, whoever wrote it: embedding, layers, pool."""

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from coop.clip.blocks import Deltas, read_block, run

#: Backbones that come with a config, for messages.
VITS = "backbone=vit_b16, vit_b32, vit_l14, laion_vit_b16, datacomp_vit_b16, siglip2_vit_b16"


def kind_of(visual: nn.Module) -> str:
    """What a user knows an image tower by, for messages."""
    return type(getattr(visual, "trunk", visual)).__name__


def vit_parts(visual: nn.Module) -> "OpenClipViT | TimmViT | None":
    """The parts of an image tower; None where it is no ViT, or one that is built otherwise."""
    if isinstance(visual, TimmModel) and isinstance(visual.trunk, TimmVisionTransformer | Eva):
        return TimmViT(visual)
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        blocks = visual.transformer.resblocks
        return OpenClipViT(visual) if all(read_block(block) is not None for block in blocks) else None
    return None


class OpenClipViT:
    """The parts of open_clip's own ViT."""

    readable = True

    def __init__(self, visual: VisionTransformer):
        self.visual, self.blocks = visual, visual.transformer.resblocks
        self.width = visual.positional_embedding.shape[1]

    def embed(self, images: Tensor) -> Tensor:
        """(B, 1 + G, V), in front of the norm that prompts go through too."""
        visual = self.visual
        x = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        first = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        return torch.cat([first, x], dim=1) + visual.positional_embedding.to(x.dtype)

    def enter(self, x: Tensor) -> Tensor:
        return self.visual.ln_pre(x)

    def pooled_rows(self, count: int) -> int:
        return 1 if self.visual.pool_type == "tok" else count

    def block(self, layer: int, x: Tensor, rows: int, deltas: Deltas | None, checkpoint: bool) -> Tensor:
        return run(read_block(self.blocks[layer]), x, checkpoint, rows=rows, deltas=deltas)

    def leave(self, x: Tensor) -> Tensor:
        pooled, _ = self.visual._pool(x)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj

    def drop_all_but_last(self) -> None:
        """Leave the last layer and what comes behind it."""
        visual, transformer = self.visual, self.visual.transformer
        visual.conv1 = visual.ln_pre = visual.class_embedding = visual.positional_embedding = None
        self.blocks = transformer.resblocks = transformer.resblocks[-1:]


class TimmViT:
    """The parts of timm's ViTs (SigLIP's among them) and of EVA."""

    def __init__(self, visual: TimmModel):
        self.visual, self.trunk, self.blocks = visual, visual.trunk, visual.trunk.blocks
        self.width = self.trunk.embed_dim
        self.readable = all(read_block(block) is not None for block in self.blocks)
        self.rope: Tensor | None = None
        self.count: int | None = None

    def embed(self, images: Tensor) -> Tensor:
        x = self.trunk.patch_embed(images.to(next(self.trunk.patch_embed.parameters()).dtype))
        x = self.trunk._pos_embed(x)
        x, self.rope = x if isinstance(x, tuple) else (x, None)
        self.count = x.shape[1]
        return x

    def enter(self, x: Tensor) -> Tensor:
        return self.trunk.norm_pre(x)

    def pooled_rows(self, count: int) -> int:
        return 1 if self.trunk.global_pool == "token" and self.trunk.attn_pool is None else count

    def block(self, layer: int, x: Tensor, rows: int, deltas: Deltas | None, checkpoint: bool) -> Tensor:
        if self.readable:
            return run(read_block(self.blocks[layer]), x, checkpoint, rows=rows, deltas=deltas)
        options = {} if self.rope is None else {"rope": self._rope_of(layer, x.shape[1])}
        return run(self.blocks[layer], x, checkpoint, **options)[:, :rows]

    def _rope_of(self, layer: int, length: int) -> Tensor:
        """The rotations of a layer; prompts have no place, and are not turned."""
        rope = self.rope[layer] if getattr(self.trunk, "rope_mixed", False) else self.rope
        sin, cos = rope.chunk(2, dim=-1)
        more = (*rope.shape[:-2], length - self.count, sin.shape[-1])
        return torch.cat([torch.cat([sin, sin.new_zeros(more)], -2), torch.cat([cos, cos.new_ones(more)], -2)], -1)

    def leave(self, x: Tensor) -> Tensor:
        # The pool never sees the prompts.
        return self.visual.head(self.trunk.forward_head(self.trunk.norm(x[:, : self.count])))

    def drop_all_but_last(self) -> None:
        """Leave the last layer and what comes behind it."""
        trunk = self.trunk
        trunk.patch_embed = trunk.norm_pre = trunk.pos_embed = trunk.cls_token = trunk.reg_token = None
        self.blocks = trunk.blocks = trunk.blocks[-1:]
