"""Local image features: what the image tower knows of each place, in the space of its pooled feature."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from coop.errors import CoopError

if TYPE_CHECKING:
    from coop.clip.backbone import FrozenCLIP


def check_local_features(clip: "FrozenCLIP") -> None:
    """Raises CoopError unless the image tower has local features or was released already."""
    if clip.model.visual is not None and _tokens_of(clip.model.visual) is None:
        raise CoopError(
            f"backbone {clip.name}: its image tower ({type(clip.model.visual).__name__}) has no local features, which "
            "this method needs; OpenAI's ResNets, ViTs without attention pool and timm's towers have them"
        )


def image_tokens(model: nn.Module, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) to (B, 1 + L, E): the pooled feature, then those of L places, not normalized.

    A ResNet's attention pool attends from each place as it does from the mean, and gives L = 49 at 224 pixels (PLOT,
    Chen et al., ICLR 2023, section 3.3). A ViT's final norm and projection are applied to each patch. The
    tower has to have them (`check_local_features`).
    """
    return _tokens_of(model.visual)(model.visual, images)


def _tokens_of(visual: nn.Module) -> Callable[[nn.Module, Tensor], Tensor] | None:
    if isinstance(visual, ModifiedResNet):
        return _resnet_tokens
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        return _vit_tokens
    if isinstance(visual, TimmModel) and "pool" not in visual.head._modules:
        return _timm_tokens
    return None


def resnet_map(visual: ModifiedResNet, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) to what the attention pool is given, (B, C, h, w)."""
    return visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))


def _resnet_tokens(visual: ModifiedResNet, images: Tensor) -> Tensor:
    pool = visual.attnpool
    x = resnet_map(visual, images).flatten(start_dim=2).permute(2, 0, 1)
    x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0)
    x = x + pool.positional_embedding[:, None, :].to(x.dtype)
    tokens, _ = nn.functional.multi_head_attention_forward(
        query=x, key=x, value=x,
        embed_dim_to_check=x.shape[-1], num_heads=pool.num_heads,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
        in_proj_weight=None, in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight, out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True, training=False, need_weights=False,
    )  # fmt: skip
    return tokens.transpose(0, 1)


def _vit_tokens(visual: VisionTransformer, images: Tensor) -> Tensor:
    x = visual.transformer(visual._embeds(images))
    pooled, _ = visual._pool(x)
    tokens = torch.cat([pooled[:, None], visual.ln_post(x[:, 1:])], dim=1)
    return tokens if visual.proj is None else tokens @ visual.proj


def _timm_tokens(visual: TimmModel, images: Tensor) -> Tensor:
    """Each place goes through the tower's pool and head as if it were alone."""
    trunk = visual.trunk
    features = trunk.forward_features(images)
    if features.ndim == 4:
        channels_last = "NHWC" in str(getattr(trunk, "output_fmt", "NCHW"))
        alone = features.flatten(0, 2)[:, None, None] if channels_last else _one_by_one(features)
    else:
        prefix = features[:, : trunk.num_prefix_tokens]
        places = features[:, prefix.shape[1] :]
        alone = places.flatten(0, 1)[:, None]
        if trunk.global_pool != "token" and not getattr(trunk, "pool_include_prefix", False):  # it is left out there
            alone = torch.cat([prefix.repeat_interleave(places.shape[1], dim=0), alone], dim=1)
    pooled, local = (visual.head(trunk.forward_head(x)) for x in (features, alone))
    return torch.cat([pooled[:, None], local.unflatten(0, (len(images), -1))], dim=1)


def _one_by_one(features: Tensor) -> Tensor:
    """(B, C, H, W) to (B * H * W, C, 1, 1)."""
    return features.flatten(2).transpose(1, 2).flatten(0, 1)[:, :, None, None]
