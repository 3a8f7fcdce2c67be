"""No result depends on which call came first: not under which autocast, not on which device or in which dtype."""

import open_clip
import pytest
import small_clip as small
import torch

from coop import FrozenCLIP, PromptLearner
from coop.methods.zero_shot import ZeroShot

NAMES = ["dog", "grey cat", "ox (old)"]


def clip() -> FrozenCLIP:
    return FrozenCLIP(small.small_clip(), open_clip.SimpleTokenizer())


def learner() -> PromptLearner:
    torch.manual_seed(0)
    return PromptLearner(clip(), NAMES, n_ctx=4)


@torch.no_grad()
def features(method, autocast: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return method.text_features()


@pytest.mark.parametrize("first", [True, False], ids=["autocast first", "full precision first"])
def test_learned_prompts_are_kept_for_one_precision(first):
    alone = {autocast: features(learner(), autocast) for autocast in (True, False)}
    assert (alone[True] - alone[False]).abs().max() > 1e-4, "autocast makes a difference here"
    method = learner()
    for autocast in (first, not first, first):
        assert torch.equal(features(method, autocast), alone[autocast])


@pytest.mark.parametrize("first", [True, False])
def test_hand_crafted_prompts_are_those_of_full_precision(first):
    method = ZeroShot(clip(), NAMES, template="a photo of a {}.")
    expected = features(ZeroShot(clip(), NAMES, template="a photo of a {}."), autocast=False)
    assert torch.equal(features(method, first), expected)
    assert torch.equal(features(method, not first), expected)


def test_hand_crafted_prompts_follow_the_dtype_of_the_weights():
    method = ZeroShot(clip(), NAMES, template="a photo of a {}.")
    single = features(method, autocast=False)
    method.clip.double()
    double = features(method, autocast=False)
    expected = features(ZeroShot(method.clip, NAMES, template="a photo of a {}."), autocast=False)
    assert double.dtype == torch.float64
    assert torch.equal(double, expected)
    method.clip.float()
    assert torch.equal(features(method, autocast=False), single)


def test_logits_are_those_of_full_precision_under_autocast():
    """Half precision would round 20.06 and 20.09 to one number: the first class of the two would win."""
    method = ZeroShot(clip(), NAMES, template="a photo of a {}.")
    x = small.image_features()
    with torch.no_grad():
        expected = method.logits(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(method.logits(x), expected)
