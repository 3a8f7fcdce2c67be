"""Combinations that are configs: each side is what it is alone."""

import pytest
import small_vit_clip
import torch
from configs import composed
from small_clip import tokenizer

from coop import CoopError, FrozenCLIP, PromptLearner
from coop.config import build_method, check

NAMES = ["dog", "sea_horse", "grand piano"]


@pytest.fixture
def small_vit() -> FrozenCLIP:
    return FrozenCLIP(small_vit_clip.small_vit_clip(), tokenizer(), name="small_vit")


def test_promptsrc_on_maples_prompts_has_maples_features(small_vit):
    torch.manual_seed(0)
    maple = build_method(composed("method=maple", "method.depth=3").method, small_vit, NAMES)
    depths = ["method.depth_text=3", "method.depth_vision=3"]
    both = build_method(composed("method=promptsrc_maple", *depths).method, small_vit, NAMES)
    missing, unexpected = both.load_state_dict(maple.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("average.") for name in missing)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(both.text_features(), maple.text_features(), atol=1e-6, rtol=0)
        torch.testing.assert_close(both.encode_image(images), maple.encode_image(images), atol=1e-6, rtol=0)
    assert both.needs_teacher and not maple.needs_teacher


def test_a_learned_context_beside_low_rank_weights_is_coops(small_vit):
    """As long as the low-rank weights are zero, features and gradient of the context are those of CoOp's prompt."""
    options = ["method.encoder=text", "method.dropout=0"]
    both = build_method(composed("method=clip_lora_context", *options).method, small_vit, NAMES)
    alone = PromptLearner(small_vit, NAMES, ctx_init="a photo of a")
    target = torch.randn(len(NAMES), small_vit.embed_dim)
    with torch.no_grad():
        both.ctx += 0.1
        alone.ctx += 0.1
    for method in (both, alone):
        (method() * target).sum().backward()
    torch.testing.assert_close(both(), alone(), atol=1e-6, rtol=0)
    torch.testing.assert_close(both.ctx.grad, alone.ctx.grad, atol=1e-5, rtol=1e-4)
    assert {name.partition(".")[0] for name, _ in both.named_parameters()} == {"ctx", "text"}


def test_a_context_needs_words():
    with pytest.raises(CoopError, match=r"method\.learn_context=true: no word stands before"):
        check(composed("method=clip_lora_context", "method.templates=['{} there']"))
