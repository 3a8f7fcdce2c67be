"""Whatever is done to the text tower between two calls, the second gives what the tower's own forward gives."""

from functools import partial

import open_clip
import pytest
import torch
from test_text_exact import NAMES, context, model, plain, prompts
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from coop.clip.snapshot import TURNS, Snapshot
from coop.clip.text.encoder import PromptEncoder
from coop.clip.text.packed import PackedTower
from coop.clip.text.plain import PlainTower


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class LowRank(nn.Module):
    """A linear layer and a low-rank change of it, as LoRA puts it in a layer's place."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, 2, bias=False).to(linear.weight)
        self.up = nn.Linear(2, linear.out_features, bias=False).to(linear.weight)

    def forward(self, x):
        return self.linear(x) + self.up(self.down(x))


def block(clip):
    return clip.transformer.resblocks[1]


def louder(module, *values):
    """A hook of any kind: its last argument is what is passed on, here with the last features louder."""
    several = isinstance(values[-1], tuple)
    changed = [value * torch.linspace(0.5, 2, value.shape[-1]) for value in (values[-1] if several else values[-1:])]
    return tuple(changed) if several else changed[0]


def low_rank(clip):
    block(clip).mlp.c_fc = LowRank(block(clip).mlp.c_fc)


def shout(clip):
    forward = block(clip).mlp.forward
    block(clip).mlp.forward = lambda x: 2 * forward(x)


STRUCTURE = {
    "forward hook": lambda clip: block(clip).register_forward_hook(louder),
    "forward hook of a projection": lambda clip: block(clip).mlp.c_fc.register_forward_hook(louder),
    "forward hook of the last norm": lambda clip: clip.ln_final.register_forward_hook(louder),
    "forward hook of the transformer": lambda clip: clip.transformer.register_forward_hook(louder),
    "forward hook of the embedding": lambda clip: clip.token_embedding.register_forward_hook(louder),
    "forward pre-hook": lambda clip: block(clip).mlp.register_forward_pre_hook(louder),
    "forward pre-hook of a norm": lambda clip: block(clip).ln_1.register_forward_pre_hook(louder),
    "backward hook": lambda clip: block(clip).mlp.register_full_backward_hook(lambda m, given, _: louder(m, given)),
    "backward pre-hook": lambda clip: block(clip).mlp.register_full_backward_pre_hook(louder),
    "parametrization": lambda clip: parametrize.register_parametrization(block(clip).mlp.c_fc, "weight", Doubled()),
    "parametrization of attention": lambda clip: parametrize.register_parametrization(
        block(clip).attn, "in_proj_weight", Doubled()
    ),
    "parametrization of a norm": lambda clip: parametrize.register_parametrization(
        block(clip).ln_2, "weight", Doubled()
    ),
    "parametrization of the projection": lambda clip: parametrize.register_parametrization(
        clip, "text_projection", Doubled()
    ),
    "weight norm": lambda clip: weight_norm(block(clip).mlp.c_proj).parametrizations.weight.original0.data.mul_(2),
    "LoRA": low_rank,
    "an activation replaced": lambda clip: setattr(block(clip).mlp, "gelu", nn.ReLU()),
    "a forward replaced": shout,
    "weights trained": lambda clip: clip.transformer.requires_grad_(True),
}


def features_and_gradient(encode, ctx, grad=True):
    ctx = ctx.detach().requires_grad_()
    with torch.set_grad_enabled(grad):
        features = encode(ctx)
    if grad:
        (features * torch.arange(features.numel()).view_as(features).cos()).sum().backward()
    return features.detach(), ctx.grad


def check(clip, encoder, ids, slots, ctx, grad=True):
    """Features and gradient are those of the plain way on the model as it is now; returns the features."""
    ours, expected = (
        features_and_gradient(f, ctx, grad) for f in (partial(encoder, normalize=False), plain(clip, ids, slots))
    )
    tolerance = 1e-10 if ctx.dtype == torch.float64 else 2e-4
    for a, b in zip(ours, expected, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    return expected


def start(dtype=torch.float64):
    clip = model().to(dtype)
    ids, slots = prompts(NAMES, 4, "front")
    encoder, ctx = PromptEncoder(clip, ids, slots, False), context(NAMES, 4, False, dtype=dtype)
    return clip, encoder, ids, slots, ctx


@pytest.mark.parametrize("change", STRUCTURE)
def test_changed_modules_run_their_own_forward(change):
    clip, *rest = start()
    before = check(clip, *rest)
    STRUCTURE[change](clip)
    after = check(clip, *rest)
    if change not in ("weights trained", "forward hook of the embedding"):
        assert max((a - b).abs().max() for a, b in zip(after, before, strict=True)) > 1e-3, "it makes a difference"
    assert type(rest[0].tower) is PlainTower
    assert rest[0].tokens_computed == rest[0].tokens


def test_a_hook_on_all_modules_and_its_end():
    clip, encoder, *rest = start()
    check(clip, encoder, *rest)
    seen = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    encoder(rest[-1])
    hook.remove()
    assert seen.count("MultiheadAttention") == 3
    check(clip, encoder, *rest)
    assert type(encoder.tower) is PackedTower


def test_a_hook_that_is_removed_leaves_the_fast_way(caplog):
    clip, encoder, *rest = start()
    before = check(clip, encoder, *rest)
    hook = block(clip).register_forward_hook(louder)
    with caplog.at_level("INFO", logger="coop"):
        check(clip, encoder, *rest)
    assert "because ResidualAttentionBlock has a hook" in caplog.text
    hook.remove()
    assert torch.equal(check(clip, encoder, *rest)[0], before[0])
    assert type(encoder.tower) is PackedTower


def test_blocks_of_the_same_kind_in_place_of_the_old_ones():
    clip, encoder, *rest = start()
    check(clip, encoder, *rest)
    clip.transformer.resblocks[1] = model(seed=1).transformer.resblocks[1]
    check(clip, encoder, *rest)
    clip.transformer.resblocks[0].mlp.c_fc = model(seed=2).transformer.resblocks[0].mlp.c_fc
    check(clip, encoder, *rest)
    assert type(encoder.tower) is PackedTower


WEIGHTS = {
    "queries, keys, values": lambda clip: block(clip).attn.in_proj_weight,
    "their bias": lambda clip: block(clip).attn.in_proj_bias,
    "attention's output": lambda clip: block(clip).attn.out_proj.weight,
    "MLP, up": lambda clip: block(clip).mlp.c_fc.weight,
    "MLP, down": lambda clip: block(clip).mlp.c_proj.weight,
    "its bias": lambda clip: block(clip).mlp.c_proj.bias,
    "norm": lambda clip: block(clip).ln_1.weight,
    "token embedding": lambda clip: clip.token_embedding.weight,
    "positional embedding": lambda clip: clip.positional_embedding,
    "projection": lambda clip: clip.text_projection,
}
WRITES = {
    "all": lambda weight: weight.data.mul_(1.5),
    "replaced": lambda weight: setattr(weight, "data", weight.data * 1.5),
    "by numpy": lambda weight: weight.detach().numpy().__imul__(1.5),
    "counted by torch": lambda weight: weight.mul_(1.5),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_changed_weights_are_seen_at_once(weight, write):
    clip, *rest = start(torch.float32)
    before = check(clip, *rest)
    WRITES[write](WEIGHTS[weight](clip))
    after = check(clip, *rest)
    assert (after[0] - before[0]).abs().max() > 1e-3
    assert type(rest[0].tower) is PackedTower


def test_memory_that_comes_back_to_the_same_address_is_seen():
    clip, *rest = start(torch.float32)
    weight = WEIGHTS["MLP, up"](clip)
    for _ in range(4):
        check(clip, *rest)
        for factor in (1.1, 1.2):
            weight.data = weight.data * factor


def test_merging_a_low_rank_change_and_taking_it_back():
    clip, *rest = start(torch.float32)
    first = check(clip, *rest)
    change = torch.randn(256, 2) @ torch.randn(2, 64) / 8
    WEIGHTS["MLP, up"](clip).data.add_(change)
    merged = check(clip, *rest)
    WEIGHTS["MLP, up"](clip).data.sub_(change)
    back = check(clip, *rest)
    assert (merged[0] - first[0]).abs().max() > 0.1 > 1e-3 > (back[0] - first[0]).abs().max()


def test_one_element_is_seen_at_once_without_gradient():
    clip, *rest = start(torch.float32)
    check(clip, *rest, grad=False)
    WEIGHTS["MLP, up"](clip).data[3, 5] += 4
    check(clip, *rest, grad=False)
    clip.token_embedding.weight.data[49407, 7] += 4  # [EOS]
    check(clip, *rest)


LARGE = [(1536, 512), (512, 2048), (2048, 512), (512, 512), (300, 301), (301, 300), (7, 20_001), (70_001,)]


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_each_row_and_each_column_of_a_large_matrix_is_compared(shape):
    holder = nn.ParameterList([torch.zeros(shape)])
    snapshot = Snapshot(lambda: ([holder], []))
    seen = torch.zeros(shape)
    (views,) = snapshot._views.values()
    view = views[0][0]
    seen.as_strided(view.shape, view.stride()).fill_(1)
    assert seen.any(dim=-1).all() and seen.any(dim=0).all()
    assert snapshot.holds()
    holder[0].data[..., 0] += 1
    assert not snapshot.holds()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_any_element_is_seen_within_its_turn(dtype):
    holder = nn.ParameterList([torch.randn(2000, 2001), torch.randn(3, 70_000)]).to(dtype)
    for tensor in holder:
        for index in (1, 777_777 % tensor.numel(), tensor.numel() - 2):
            snapshot = Snapshot(lambda: ([holder], []))
            assert all(snapshot.holds() for _ in range(2 * TURNS))
            tensor.data.view(-1)[index] += 0.5
            assert not snapshot.holds(thorough=True)
            assert not all(snapshot.holds() for _ in range(TURNS))


def test_looking_costs_next_to_nothing():
    """Counted, not timed: one concatenation (in two calls), one comparison, and sums of a sixteenth."""
    from torch.profiler import ProfilerActivity, profile

    text = {"context_length": 77, "vocab_size": 1000, "width": 512, "heads": 8, "layers": 12}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16}
    clip = open_clip.CLIP(512, vision, text).requires_grad_(False)
    snapshot = Snapshot(lambda: ([clip.transformer, clip.ln_final], []))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        snapshot.holds()
    counts = {event.key: event.count for event in profiled.key_averages()}
    assert counts["aten::cat"] <= 2 and counts["aten::equal"] == 1
    assert counts["aten::sum"] <= 4
