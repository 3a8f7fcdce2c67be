"""The text encoder with what the field's methods ask of it: several contexts, deep prompts, raw features."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_clip import tokenizer
from test_text_exact import NAMES, lower_precision, model, prompts, saved_bytes
from torch import nn

from coop import FrozenCLIP
from coop.clip.text import encoder as text
from coop.clip.text.encoder import PromptEncoder
from coop.clip.text.packed import PackedTower
from coop.clip.text.plain import PlainTower, text_blocks
from coop.errors import CoopError

WIDTH, LAYERS = 64, 3
OPTIONS = [{}, {"checkpoint": True}, {"class_chunk": 5}, {"class_chunk": 25}, {"checkpoint": True, "class_chunk": 7}]
SHARED, OWN = False, True

positions = pytest.mark.parametrize("position", ["end", "middle", "front"])
options = pytest.mark.parametrize("options", OPTIONS, ids=str)


@pytest.fixture(scope="module")
def tiny():
    return model()


def drawn(*shape, seed=0, dtype=torch.float64):
    """A learned tensor."""
    generator = torch.Generator().manual_seed(seed + math.prod(shape))
    return (0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def deep_prompts(layers, n=2, classes=12, dtype=torch.float64):
    """Deep prompts in front of layers {layer: of each class's own}."""
    shapes = {layer: (classes, n, WIDTH) if own else (n, WIDTH) for layer, own in layers.items()}
    return {layer: drawn(*shape, seed=layer, dtype=dtype) for layer, shape in shapes.items()}


def by_hand(clip, ids, slots, ctx, deep, class_specific):
    """(*, K, E): every token of every prompt, layer by layer, as the methods' papers write it."""
    own = 3 if class_specific else 2
    contexts = ctx.reshape(-1, *ctx.shape[-own:])
    features = torch.stack([_by_hand(clip, ids, slots, context, deep) for context in contexts])
    return features.reshape(*ctx.shape[:-own], *features.shape[1:]).to(ctx.dtype)


def _by_hand(clip, ids, slots, ctx, deep):
    tower = getattr(clip, "text", clip)
    dtype = tower.transformer.get_cast_dtype()
    k, p = (slots >= 0).nonzero(as_tuple=True)  # prompt, position and slot of each learned token
    slot = slots[k, p]
    x = tower.token_embedding(ids).to(dtype)
    x = x.index_put((k, p), (ctx[k, slot] if ctx.ndim == 3 else ctx[slot]).to(dtype))
    x = x + tower.positional_embedding.to(dtype)
    for i, block in enumerate(tower.transformer.resblocks):
        if i in deep:
            first = slot < deep[i].shape[-2]
            vectors = deep[i][k[first], slot[first]] if deep[i].ndim == 3 else deep[i][slot[first]]
            x = x.index_put((k[first], p[first]), vectors.to(dtype))
        x = block(x, attn_mask=getattr(tower, "attn_mask", None))
    x = tower.ln_final(x)
    kind = getattr(tower, "pool_type", None) or tower.text_pool_type
    x = x[torch.arange(len(ids)), {"argmax": ids.argmax(1), "last": -1}[kind]]
    return tower.text_projection(x) if isinstance(tower.text_projection, nn.Linear) else x @ tower.text_projection


def features_and_gradients(features, learned):
    """Features, and the gradient of each learned tensor of a random loss."""
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((features * weights.to(features.dtype)).sum(), learned)
    return [features.detach(), *gradients]


def assert_equal_by_hand(clip, ids, slots, ctx, deep=None, class_specific=False, fast=True, **options):
    """Features and gradients of context and deep prompts, normalized and not."""
    deep = deep or {}
    encoder = PromptEncoder(clip, ids, slots, class_specific, **options)
    assert isinstance(encoder.tower, PackedTower if fast else PlainTower)
    learned = [ctx, *deep.values()]
    raw = by_hand(clip, ids, slots, ctx, deep, class_specific)
    raw = features_and_gradients(raw, learned)
    for got, true in zip(features_and_gradients(encoder(ctx, deep, normalize=False), learned), raw, strict=True):
        assert got.shape == true.shape
        assert true.norm() > 1e-3
        assert (got - true).abs().max() < 1e-10
    assert (encoder(ctx, deep) - F.normalize(raw[0], dim=-1)).abs().max() < 1e-10
    return encoder


def templated(words, names=NAMES, n_ctx=2):
    """ids and slots of "WORDS name.", whose first n_ctx words give way to context vectors."""
    ids = tokenizer()([f"{words} {name}." for name in names])
    slots = torch.full_like(ids, -1)
    slots[:, 1 : 1 + n_ctx] = torch.arange(n_ctx)
    return ids, slots


@options
@positions
@pytest.mark.parametrize("class_specific", [False, True])
def test_several_contexts(tiny, position, class_specific, options):
    ctx = drawn(3, *([len(NAMES)] if class_specific else []), 4, WIDTH)
    assert_equal_by_hand(tiny, *prompts(NAMES, 4, position), ctx, class_specific=class_specific, **options)


@pytest.mark.parametrize("leading", [(), (1,), (2, 2)], ids=str)
def test_leading_dimensions_of_contexts_are_those_of_features(tiny, leading):
    ctx = drawn(*leading, 4, WIDTH)
    encoder = assert_equal_by_hand(tiny, *prompts(NAMES, 4, "end"), ctx)
    assert encoder(ctx).shape == (*leading, len(NAMES), 32)


def test_each_of_several_contexts_gives_what_it_gives_alone(tiny):
    encoder = PromptEncoder(tiny, *prompts(NAMES, 4, "end"))
    ctx = drawn(5, 4, WIDTH)
    together = encoder(ctx)
    for context, features in zip(ctx, together, strict=True):
        assert (encoder(context) - features).abs().max() < 1e-12


DEEP = {
    "shared": {1: SHARED, 2: SHARED},
    "one_layer": {2: SHARED},
    "of_each_class": {1: OWN},
    "of_each_class_last": {2: OWN},
    "shared_then_of_each_class": {1: SHARED, 2: OWN},
    "of_each_class_then_shared": {1: OWN, 2: SHARED},
    "of_each_class_twice": {1: OWN, 2: OWN},
}


@positions
@pytest.mark.parametrize("n", [1, 3, 4])
@pytest.mark.parametrize("name", DEEP)
def test_deep_prompts(tiny, name, n, position):
    ids, slots = prompts(NAMES, 4, position)
    assert_equal_by_hand(tiny, ids, slots, drawn(4, WIDTH), deep_prompts(DEEP[name], n))


@options
@pytest.mark.parametrize("name", ["shared", "of_each_class", "shared_then_of_each_class"])
def test_deep_prompts_with_options_that_save_memory(tiny, name, options):
    assert_equal_by_hand(tiny, *prompts(NAMES, 4, "end"), drawn(4, WIDTH), deep_prompts(DEEP[name]), **options)


@pytest.mark.parametrize("options", [{}, {"class_chunk": 5}, {"class_chunk": 25}], ids=str)
@pytest.mark.parametrize("name", ["shared", "shared_then_of_each_class"])
@pytest.mark.parametrize("class_specific", [False, True])
def test_deep_prompts_behind_several_contexts(tiny, name, class_specific, options):
    ctx = drawn(3, *([len(NAMES)] if class_specific else []), 2, WIDTH)
    ids, slots = prompts(NAMES, 2, "end")
    assert_equal_by_hand(tiny, ids, slots, ctx, deep_prompts(DEEP[name]), class_specific, **options)


@pytest.mark.parametrize("name", ["shared", "of_each_class"])
@pytest.mark.parametrize("names", [NAMES[:1], ["great white shark", "great grey owl", "great grey owl"]], ids=len)
def test_deep_prompts_where_all_names_begin_alike(tiny, name, names):
    ids, slots = prompts(names, 2, "end")
    assert_equal_by_hand(tiny, ids, slots, drawn(2, WIDTH), deep_prompts(DEEP[name], classes=len(names)))


@pytest.mark.parametrize("name", ["shared", "of_each_class"])
@pytest.mark.parametrize(("words", "n_ctx"), [("a photo of a", 2), ("a photo of a person doing", 4)])
def test_fixed_words_between_context_and_name(tiny, name, words, n_ctx):
    ids, slots = templated(words, n_ctx=n_ctx)
    encoder = assert_equal_by_hand(tiny, ids, slots, drawn(n_ctx, WIDTH), deep_prompts(DEEP[name], n_ctx))
    prefix = 1 + len(words.split())
    suffixes = PromptEncoder(tiny, *prompts(NAMES, 1, "end")).tokens_computed - 2
    assert encoder.tokens_computed == prefix + suffixes


TOWERS = {"layer_scale_gelu": {"ls_init_value": 0.5, "quick_gelu": False}, "custom": {"custom": True}}


@pytest.mark.parametrize("config", TOWERS.values(), ids=TOWERS)
def test_other_towers_that_are_computed_fast(config):
    deep = deep_prompts(DEEP["shared_then_of_each_class"])
    assert_equal_by_hand(model(**config), *prompts(NAMES, 2, "end"), drawn(2, 2, WIDTH), deep)


PLAIN_TOWERS = {
    "both_ways": {"custom": True, "no_causal_mask": True},
    "siglip": {"custom": True, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "norm_of_queries": {"qk_norm": True},
}


@pytest.mark.parametrize("options", [{}, {"class_chunk": 2}, {"class_chunk": 7}], ids=str)
@pytest.mark.parametrize("config", PLAIN_TOWERS.values(), ids=PLAIN_TOWERS)
def test_towers_that_run_their_own_forward(config, options):
    clip, names = model(layers=LAYERS, **config), NAMES[:3]
    blocks = list(getattr(clip, "text", clip).transformer.resblocks)
    ids, slots = prompts(names, 2, "end")
    for name, class_specific in [("shared", True), ("shared_then_of_each_class", False)]:
        ctx = drawn(3, *([len(names)] if class_specific else []), 2, WIDTH)
        deep = deep_prompts(DEEP[name], classes=len(names))
        assert_equal_by_hand(clip, ids, slots, ctx, deep, class_specific, fast=False, **options)
    assert list(getattr(clip, "text", clip).transformer.resblocks) == blocks


def test_a_plain_tower_recomputes_its_layers_with_their_prompts():
    clip = model(custom=True, no_causal_mask=True)
    deep = deep_prompts(DEEP["shared_then_of_each_class"])
    encoder = PromptEncoder(clip, *prompts(NAMES, 2, "end"), checkpoint=True)
    ctx = drawn(2, WIDTH)
    ours = features_and_gradients(encoder(ctx, deep, normalize=False), [ctx, *deep.values()])
    clip.text.transformer.grad_checkpointing = False
    expected = by_hand(clip, *prompts(NAMES, 2, "end"), ctx, deep, False)
    for got, true in zip(ours, features_and_gradients(expected, [ctx, *deep.values()]), strict=True):
        assert (got - true).abs().max() < 1e-10


class UnknownTower(nn.Module):
    """A text encoder with blocks of its own behind `get_input_embeddings`, as Hugging Face's have."""

    def __init__(self):
        super().__init__()
        self.transformer, self.mix = nn.Module(), nn.Linear(WIDTH, 32).double()
        embedding = nn.Embedding(49408, WIDTH).double()
        self.transformer.get_input_embeddings = lambda: embedding

    def forward(self, ids):
        x = self.transformer.get_input_embeddings()(ids)
        return self.mix(torch.tanh(x.cumsum(1)).mean(1))


def test_other_text_encoders_take_several_contexts_and_refuse_deep_prompts():
    clip = model(custom=True)
    clip.text = UnknownTower()
    encoder = PromptEncoder(clip.requires_grad_(False), *prompts(NAMES, 2, "end"), class_chunk=5)
    ctx = drawn(3, 2, WIDTH)
    together = encoder(ctx)
    assert (together[0] - together[1]).abs().max() > 1e-3
    for context, features in zip(ctx, together, strict=True):
        assert (encoder(context) - features).abs().max() < 1e-12
    message = r"UnknownTower\) has no residual blocks.*backbone=vit_b16"
    with pytest.raises(CoopError, match=message):
        encoder(ctx, deep_prompts(DEEP["shared"]))
    with pytest.raises(CoopError, match=message):
        text_blocks(clip)


@pytest.mark.parametrize(
    ("ctx", "deep", "message"),
    [
        ((3, WIDTH), {}, r"context of shape \(3, 64\).*\(\.\.\., 2, 64\)"),
        ((2, WIDTH), {0: (2, WIDTH)}, r"layer 0:.*layers 0 to 2.*from 1 to 2"),
        ((2, WIDTH), {3: (2, WIDTH)}, r"layer 3:.*layers 0 to 2.*from 1 to 2"),
        ((2, WIDTH), {1: (3, WIDTH)}, r"\(3, 64\) in front of layer 1.*n from 1 to the 2 context vectors"),
        ((2, WIDTH), {1: (5, 2, WIDTH)}, r"\(5, 2, 64\) in front of layer 1: expected \(n, 64\) or \(12, n, 64\)"),
        ((2, WIDTH), {2: (2, 32)}, r"\(2, 32\) in front of layer 2"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tiny, ctx, deep, message):
    encoder = PromptEncoder(tiny, *prompts(NAMES, 2, "end"))
    with pytest.raises(CoopError, match=message):
        encoder(drawn(*ctx), {layer: drawn(*shape) for layer, shape in deep.items()})


def test_deep_prompts_of_each_class_change_nothing_for_calls_without_them(tiny):
    ids, slots = prompts(NAMES, 2, "end")
    encoder, ctx, deep = PromptEncoder(tiny, ids, slots), drawn(2, WIDTH), deep_prompts(DEEP["of_each_class"])
    before = encoder(ctx)
    with torch.inference_mode():
        encoder(ctx, deep)
    with_deep = encoder(ctx, deep)
    assert torch.equal(encoder(ctx), before)
    assert (with_deep - before).abs().max() > 1e-2
    with_deep.sum().backward()


@pytest.mark.parametrize("name", ["shared", "of_each_class"])
@pytest.mark.parametrize("precision", ["fp16", "pure_bf16", "autocast"])
def test_lower_precision_is_no_less_accurate(name, precision):
    clip, exact = (model().float(), model()) if precision == "autocast" else lower_precision(precision)
    ids, slots = prompts(NAMES, 2, "end")
    ctx, deep = drawn(3, 2, WIDTH, dtype=torch.float32), deep_prompts(DEEP[name], dtype=torch.float32)
    learned = [ctx, *deep.values()]
    in_double = [t.detach().double().requires_grad_() for t in learned]
    true = by_hand(exact, ids, slots, in_double[0], dict(zip(deep, in_double[1:], strict=True)), False)
    true = features_and_gradients(true, in_double)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        ours = PromptEncoder(clip, ids, slots)(ctx, deep, normalize=False)
        plain = by_hand(clip, ids, slots, ctx, deep, False)
    results = [features_and_gradients(features, learned) for features in (ours, plain)]
    for got, theirs, expected in zip(*results, true, strict=True):
        assert got.dtype == torch.float32
        assert 0 < (got - expected).norm() < 1.5 * (theirs - expected).norm() < 0.3 * expected.norm()


def test_a_chunk_bounds_contexts_times_classes(tiny):
    ids, slots = prompts(NAMES, 4, "end")
    ctx = drawn(6, 4, WIDTH)
    kept = {chunk: saved_bytes(PromptEncoder(tiny, ids, slots, class_chunk=chunk), ctx) for chunk in (None, 24, 4)}
    assert kept[24] < kept[None] / 20
    assert kept[4] < kept[None] / 20


def test_without_gradient_few_contexts_are_encoded_at_a_time(tiny, monkeypatch):
    ids, slots = prompts(NAMES, 4, "end")
    encoder, ctx = PromptEncoder(tiny, ids, slots), drawn(5, 4, WIDTH)
    expected = encoder(ctx)
    monkeypatch.setattr(text, "PROMPTS_WITHOUT_GRADIENT", 2 * len(NAMES) + 1)
    sizes, (encode,) = [], encoder.tower.chunks()
    counted = [lambda contexts, deep: sizes.append(len(contexts)) or encode(contexts, deep)]
    monkeypatch.setattr(encoder.tower, "chunks", lambda *_: counted)
    with torch.no_grad():
        assert (encoder(ctx) - expected).abs().max() < 1e-12
    assert sizes == [2, 2, 1]


def test_raw_features_of_texts(tiny):
    clip = FrozenCLIP(tiny, tokenizer())
    texts = ["a photo of a dog.", "a cat"]
    raw = clip.encode_text(texts, normalize=False)
    assert (raw - tiny.encode_text(clip.tokenize(texts))).abs().max() < 1e-12
    assert (raw.norm(dim=-1) - 1).abs().min() > 1e-3
    assert torch.equal(clip.encode_text(texts), F.normalize(raw, dim=-1))


def test_the_encoder_of_a_frozen_clip(tiny):
    clip = FrozenCLIP(tiny, tokenizer())
    assert clip.text_layers == LAYERS
    encoder = clip.prompt_encoder(*prompts(NAMES, 2, "end"), class_chunk=5)
    assert encoder.class_chunk == 5
    filler = clip.token_embedding(encoder.tower.prompts[0][0][0, 1:3])
    hand_crafted = clip.encode_text([f"X X {name}." for name in NAMES], normalize=False)
    assert (encoder(filler, normalize=False) - hand_crafted).abs().max() < 1e-10
