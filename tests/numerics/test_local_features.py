"""Local image features against formulas written out, place by place; the pooled one is encode_image's."""

import open_clip
import pytest
import small_vit_clip
import torch
import torch.nn.functional as F
from small_clip import tokenizer

from coop import CoopError, FrozenCLIP
from coop.clip.local import image_tokens
from coop.methods.plot import PLOT

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def clip_of(**vision) -> FrozenCLIP:
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT).eval()
    for name, value in model.visual.state_dict().items():
        if value.is_floating_point() and ("running" in name or value.std() < 1e-3):  # no statistic at its default
            value.copy_(torch.rand_like(value) + 0.5)
    return FrozenCLIP(model, tokenizer())


@torch.no_grad()
def tokens_of(clip: FrozenCLIP, size: int, places: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random images, and their tokens, not normalized; the pooled one and the kinds of features are checked."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    tokens = image_tokens(clip.model, images)
    assert tokens.shape == (2, 1 + places, clip.embed_dim)
    raw, normalized, kept = (clip.encode_image(images, kind) for kind in ("raw", "normalized", "tokens"))
    assert torch.allclose(tokens[:, 0], raw, atol=1e-5)
    assert torch.allclose(kept[:, 0], normalized, atol=1e-5)
    assert torch.allclose(kept, F.normalize(tokens, dim=-1), atol=1e-6)
    return images, tokens


def test_vit():
    """Each patch through the final norm and the projection, as the class token."""
    clip = FrozenCLIP(small_vit_clip.small_vit_clip(), tokenizer())
    images, tokens = tokens_of(clip, 48, 9)
    visual = clip.model.visual
    x = F.conv2d(images, visual.conv1.weight, stride=16).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(2, 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)
    for block in visual.transformer.resblocks:
        x = block(x)
    assert torch.allclose(tokens, visual.ln_post(x) @ visual.proj, atol=1e-5)


def test_resnet():
    """The attention pool's answer to each place's own query; its own code asks for the mean's alone."""
    clip = clip_of(image_size=96, layers=[1, 1, 1, 1], width=16, patch_size=None)
    images, tokens = tokens_of(clip, 96, 9)
    visual, pool = clip.model.visual, clip.model.visual.attnpool
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))).flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + pool.positional_embedding
    q, k, v = ((linear(x)).unflatten(2, (pool.num_heads, -1)).transpose(1, 2) for linear in
               (pool.q_proj, pool.k_proj, pool.v_proj))  # fmt: skip
    attention = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)
    assert torch.allclose(tokens, pool.c_proj((attention @ v).transpose(1, 2).flatten(2)), atol=1e-5)


TIMM = {
    "class token": ("test_vit", {"timm_pool": "token"}, 160, 100),
    "average": ("test_vit", {"timm_pool": "avg"}, 160, 100),
    "attention pool (SigLIP)": ("test_vit3", {"timm_pool": "map"}, 160, 100),
    "convolutions": ("test_efficientnet", {"timm_pool": "avg"}, 64, 4),
    "convolutions, a norm behind the pool": ("test_convnext", {"timm_pool": "avg"}, 64, 4),
    "reparametrized convolutions": ("fastvit_t8", {"timm_pool": "avg"}, 64, 4),
}


@pytest.mark.parametrize("kind", TIMM)
def test_timm(kind):
    """A place's feature is that of an image all of whose places are like it."""
    name, options, size, places = TIMM[kind]
    clip = clip_of(timm_model_name=name, timm_proj="linear", image_size=size, **options)
    images, tokens = tokens_of(clip, size, places)
    visual = clip.model.visual
    trunk = visual.trunk
    features = trunk.forward_features(images)
    for place in (0, places - 1):
        if features.ndim == 4:
            alike = features.flatten(2)[:, :, place, None, None].expand_as(features)
        else:
            prefix = trunk.num_prefix_tokens
            alike = features[:, prefix + place, None].expand(-1, features.shape[1] - prefix, -1)
            if options["timm_pool"] == "avg":  # which leaves the class token out
                alike = torch.cat([features[:, :prefix], alike], dim=1)
        assert torch.allclose(tokens[:, 1 + place], visual.head(trunk.forward_head(alike)), atol=1e-5)


def test_the_bundled_clip_has_them(tiny_clip):
    """Its pool is a mean and its head is linear: the local features' mean is the pooled feature."""
    _, tokens = tokens_of(tiny_clip, 224, 49)
    assert torch.allclose(tokens[:, 1:].mean(dim=1), tokens[:, 0], atol=1e-4)
    assert (tokens[:, 1] - tokens[:, 25]).abs().max() > 0.1


def test_a_tower_without_them_is_refused_by_name_before_an_image_is_read():
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16}
    clip = clip_of(**vision, attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=4)
    with pytest.raises(
        CoopError, match=r"backbone custom: its image tower \(VisionTransformer\) has no local features"
    ):
        PLOT(clip, ["dog", "cat"])
    with pytest.raises(CoopError, match=r"VisionTransformer\) has no local features.* OpenAI's ResNets"):
        clip.encode_image(torch.zeros(1, 3, 32, 32), "tokens")


def test_what_was_learned_serves_when_the_image_tower_has_been_released():
    clip = clip_of(image_size=32, layers=1, width=64, head_width=64, patch_size=16)
    tokens = clip.encode_image(torch.randn(2, 3, 32, 32), "tokens")
    clip.release_image_tower()
    assert PLOT(clip, ["dog", "cat"]).logits(tokens).shape == (2, 2)
