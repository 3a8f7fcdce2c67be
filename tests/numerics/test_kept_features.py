"""No result depends on which call came first: not under which autocast, not on which device or in which dtype."""

import pytest
import small_clip as small
import torch
from configs import composed, names
from methods import quick

from coop import FrozenCLIP, PromptLearner
from coop.config import build_method
from coop.methods import Method
from coop.methods.zero_shot import ZeroShot

METHODS = names("method")
NAMES = ["dog", "grey cat", "ox (old)"]


def clip() -> FrozenCLIP:
    return FrozenCLIP(small.small_clip(), small.tokenizer())


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


def built(method: str):
    """A method as a run builds and prepares it, the same each time."""
    node = composed(*quick(method)).method
    torch.manual_seed(0)
    method = build_method(node, clip(), NAMES)
    x = torch.nn.functional.normalize(torch.randn(6, method.clip.embed_dim), dim=-1)
    if method.feature_kind in ("tokens", "last_layer"):  # several for each image
        x = torch.stack([x, x.roll(1, dims=0), x.roll(2, dims=0)], dim=1)
    method.prepare(lambda part: (x[None], torch.arange(6) % len(NAMES)))
    return method, x


def all_of(built, autocast: bool, inference: bool) -> list[torch.Tensor]:
    """Logits, and text features where there are some."""
    method, x = built
    with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        results = [method.logits(x)]
        if type(method).forward is not Method.forward and not method.text_depends_on_image:
            results.append(method.text_features())
    return results


@pytest.mark.parametrize("method", METHODS)
def test_no_method_depends_on_which_call_came_first(method):
    calls = [(False, True), (True, False), (True, True), (False, False)]  # autocast, inference mode
    alone = {autocast: all_of(built(method), autocast, inference=False) for autocast in (False, True)}
    for order in (calls, calls[::-1]):
        used = built(method)
        for autocast, inference in order:
            for ours, fresh in zip(all_of(used, autocast, inference), alone[autocast], strict=True):
                assert ours.dtype == fresh.dtype and torch.equal(ours, fresh)


def test_kept_features_follow_what_torch_does_not_count():
    method = learner()
    for change in (
        lambda: method.ctx.data.mul_(9),
        lambda: method.clip.model.transformer.resblocks[0].mlp.c_fc.weight.data.mul_(1.5),
        lambda: method.clip.model.ln_final.bias.data.add_(0.1),
    ):
        before = features(method, autocast=False)
        change()
        after = features(method, autocast=False)
        fresh = PromptLearner(method.clip, NAMES, n_ctx=4)
        fresh.ctx.data.copy_(method.ctx)
        assert (after - before).abs().max() > 1e-3
        assert torch.equal(after, features(fresh, autocast=False))


def test_hand_crafted_prompts_follow_the_weights():
    method = ZeroShot(clip(), NAMES, template="a photo of a {}.")
    before = features(method, autocast=False)
    method.clip.model.transformer.resblocks[0].mlp.c_fc.weight.data.mul_(1.5)
    after = features(method, autocast=False)
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(after, features(ZeroShot(method.clip, NAMES, template="a photo of a {}."), autocast=False))
