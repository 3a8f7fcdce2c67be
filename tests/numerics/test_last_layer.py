"""The last layer of an image tower apart: in front of it and behind it the same figures as in one go."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from small_clip import tokenizer

from coop import CoopError, FrozenCLIP
from coop.clip.last_layer import LastLayer
from coop.methods.cross_modal import CrossModal

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
TIMM = {"timm_model_name": "test_vit", "timm_proj": "linear", "image_size": 160}
BLOCK = 12 * 64 * 64 + 13 * 64
#: Image towers, and how many numbers their last layer has.
TOWERS = {
    "class token": (VIT, BLOCK + 128 + 64 * 16),
    "average": (VIT | {"pool_type": "avg"}, BLOCK + 128 + 64 * 16),
    "ResNet": ({"image_size": 96, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}, None),
    "timm, class token": (TIMM | {"timm_pool": "token"}, None),
    "timm, average": (TIMM | {"timm_pool": "avg"}, None),
}


def clip_of(vision: dict) -> FrozenCLIP:
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT).eval()
    return FrozenCLIP(model, tokenizer())


@pytest.mark.parametrize("kind", TOWERS)
def test_before_and_behind_are_the_whole(kind):
    vision, count = TOWERS[kind]
    clip = clip_of(vision)
    size = vision["image_size"]
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    x, expected = clip.encode_image(images, "last_layer"), clip.encode_image(images)
    last = LastLayer(clip)
    assert torch.allclose(clip.pooled(x, "last_layer"), expected, atol=1e-6)
    tensors = [torch.stack([weight, 1.5 * weight]) for weight in last.parameters()]
    same, other = last.by_each(x, tensors)
    assert torch.allclose(same, expected, atol=1e-6)
    with torch.no_grad():
        for weight, each in zip(last.parameters(), tensors, strict=True):
            weight.copy_(each[1])
    assert torch.allclose(other, F.normalize(last(x), dim=-1), atol=1e-6)
    assert (other - same).abs().max() > 0.01
    assert torch.equal(clip.encode_image(images), expected), "the frozen tower stays"
    if count:
        assert sum(weight.numel() for weight in last.parameters()) == count


def test_a_tower_whose_last_layer_is_not_known_is_refused(tiny_clip):
    options = {"templates": ["a {}."], "lr": [1e-5], "weight_decay": [0.0], "batch_size": [8]}
    with pytest.raises(CoopError, match=r"backbone tiny: the last layer of its image tower \(EfficientNet\) cannot be"):
        CrossModal(tiny_clip, ["dog", "cat"], head="partial", **options)
