"""The fast text encoder against the tower's own forward on all tokens: same features, same gradient."""

import copy
import functools
import itertools
import logging

import open_clip
import pytest
import small_clip as small
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from open_clip.model import convert_weights_to_lp
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from coop.clip.backbone import FrozenCLIP
from coop.clip.text.encoder import PromptEncoder
from coop.clip.text.packed import PackedTower
from coop.clip.text.plain import PlainTower, plain_text_features, prompt_embeddings
from coop.clip.text.sharded import ShardedPromptEncoder
from coop.errors import CoopError

# Two to six tokens each; names that end in a bracket or digit merge with the "." behind them, or do not; one is twice.
NAMES = [
    "goldfish", "great white shark", "crane (bird)", "crane (machine)", "apple 2", "maillot",
    "maillot", "black-and-gold garden spider", "Boeing 737-800", "t-shirt", "X", "sports car (red)",
]  # fmt: skip
FILLER = 343  # "X"


@functools.cache
def tokenizer():
    return small.tokenizer()


def prompts(names, n_ctx, position):
    """ids and slots (K, 77) of the prompts, laid out from the tokens of "X X .. name." like the original."""
    ids = tokenizer()([" ".join(["X"] * n_ctx) + f" {name}." for name in names])
    slots = torch.full_like(ids, -1)
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
    for k, name in enumerate(names):
        rest = ids[k, 1 + n_ctx :].tolist()
        length = len(tokenizer().encode(name)) if position != "end" else 0
        filler = [FILLER] * (n_ctx - before)
        ids[k, 1 : 1 + before] = FILLER
        ids[k, 1 + before :] = torch.tensor([*rest[:length], *filler, *rest[length:]])
        slots[k, 1 : 1 + before] = torch.arange(before)
        slots[k, 1 + before + length : 1 + n_ctx + length] = torch.arange(before, n_ctx)
    return ids, slots


def model(**options):
    """A tiny open_clip model in float64, frozen, every weight of it random; a copy of its own at each call."""
    key = repr(sorted(options.items()))
    if key not in BUILT:
        BUILT[key] = build(**options)
    return copy.deepcopy(BUILT[key])


BUILT = {}


def build(custom=False, seed=0, cast_dtype=None, **text_cfg):
    quick_gelu = text_cfg.pop("quick_gelu", True)
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3} | text_cfg
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16}
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = kind(32, vision, text, quick_gelu=quick_gelu, cast_dtype=cast_dtype).eval().requires_grad_(False)
        for parameter in clip.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(noise * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else parameter + 0.1 * noise)
    return clip if cast_dtype else clip.double()


def context(names, n_ctx, class_specific, width=64, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n_ctx)
    shape = (len(names), n_ctx, width) if class_specific else (n_ctx, width)
    return (0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def logits_and_gradient(features_of, ctx, joint=32):
    """Logits (7, K) against random image features at temperature 100, and the gradient in ctx of a mean of them."""
    generator = torch.Generator().manual_seed(1)
    images = F.normalize(torch.randn(7, joint, generator=generator, dtype=torch.float64), dim=-1).to(ctx.dtype)
    ctx = ctx.detach().requires_grad_()
    features = features_of(ctx)
    assert features.dtype == ctx.dtype
    logits = 100 * images @ F.normalize(features, dim=-1).T
    weights = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(ctx.dtype)
    (logits * weights).mean().backward()
    assert ctx.grad.dtype == ctx.dtype
    return logits.detach(), ctx.grad


def plain(clip, ids, slots):
    """The plain way as a function of ctx."""
    return lambda ctx: plain_text_features(clip, ids, prompt_embeddings(clip, ids, slots, ctx)).to(ctx.dtype)


def assert_same(clip, names, n_ctx, position, class_specific, tolerance=1e-10, fast=True, **options):
    ids, slots = prompts(names, n_ctx, position)
    ctx = context(names, n_ctx, class_specific, clip.ln_final.weight.shape[0] if hasattr(clip, "ln_final") else 64)
    encoder = PromptEncoder(clip, ids, slots, class_specific, **options)
    assert isinstance(encoder.tower, PackedTower if fast else PlainTower)
    joint = encoder(ctx).shape[1]
    logits, gradient = logits_and_gradient(encoder, ctx, joint)
    expected_logits, expected_gradient = logits_and_gradient(plain(clip, ids, slots), ctx, joint)
    assert expected_gradient.norm() > 1e-3
    assert (logits - expected_logits).abs().max() < tolerance
    assert (gradient - expected_gradient).abs().max() < tolerance
    return encoder


variants = pytest.mark.parametrize(
    ("position", "class_specific"), list(itertools.product(("end", "middle", "front"), (False, True)))
)


@pytest.fixture(scope="module")
def tiny():
    return model()


@variants
@pytest.mark.parametrize("n_ctx", [1, 4, 16])
def test_logits_and_gradient_in_float64(tiny, n_ctx, position, class_specific):
    encoder = assert_same(tiny, NAMES, n_ctx, position, class_specific)
    assert encoder.tokens == len(NAMES) * 77
    assert encoder.tokens_computed < encoder.tokens / 3


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint": True},
        {"class_chunk": 5},
        {"class_chunk": 1},
        {"class_chunk": 99},
        {"checkpoint": True, "class_chunk": 5},
    ],
    ids=str,
)
@variants
def test_options_that_save_memory_change_nothing(tiny, options, position, class_specific):
    assert_same(tiny, NAMES, 4, position, class_specific, **options)


@variants
def test_many_classes(position, class_specific):
    """A thousand in the paper's main experiment, a fifth of them elsewhere: the plain way takes seconds."""
    names = IMAGENET_CLASSNAMES if (position, class_specific) == ("end", False) else IMAGENET_CLASSNAMES[::5]
    clip = model(width=16, heads=2, layers=2)
    assert_same(clip, names, 16, position, class_specific)


def test_a_single_class(tiny):
    for class_specific in (False, True):
        assert_same(tiny, NAMES[:1], 4, "end", class_specific)


TOWERS = {
    "gelu": {"quick_gelu": False},
    "gelu_tanh": {"quick_gelu": False, "act_kwargs": {"approximate": "tanh"}},
    "layer_scale": {"ls_init_value": 0.5},
    "layer_scale_gelu": {"ls_init_value": 0.5, "quick_gelu": False},
    "layer_norm_eps": {"norm_kwargs": {"eps": 1e-2}},
    "linear_projection": {"proj_bias": True},
    "no_projection": {"proj_type": "none"},
    "one_layer": {"layers": 1},
    "mlp_ratio": {"mlp_ratio": 2.5},
    "pools_eos": {"pool_type": "eos", "eos_id": 49407},
    "pools_last": {"pool_type": "last"},
    "custom_text": {"custom": True},
    "custom_text_eos": {"custom": True, "pool_type": "eos", "eos_id": 49407},
}


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("position", ["end", "front"])
def test_towers_that_are_computed_fast(name, position):
    assert_same(model(**TOWERS[name]), NAMES, 4, position, class_specific=False)


ODD_TOWERS = {
    "both_ways": ({"custom": True, "no_causal_mask": True}, "not causal"),
    "siglip": ({"custom": True, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}, "not causal"),
    "pools_first": ({"pool_type": "first", "no_causal_mask": True}, "not causal"),
    "norm_of_queries": ({"qk_norm": True}, "CustomResidualAttentionBlock"),
}


@pytest.mark.parametrize("name", ODD_TOWERS)
@pytest.mark.parametrize("options", [{}, {"class_chunk": 5}], ids=str)
def test_towers_that_run_their_own_forward(name, options, caplog):
    config, reason = ODD_TOWERS[name]
    with caplog.at_level(logging.INFO, logger="coop"):
        encoder = assert_same(model(**config), NAMES, 4, "middle", False, fast=False, **options)
    assert reason in caplog.text
    assert encoder.tokens_computed == encoder.tokens == len(NAMES) * 77


def test_coca_is_not_normalized_and_runs_its_own_forward():
    text = {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 4,
        "layers": 2,
        "embed_cls": True,
        "output_tokens": True,
    }
    vision = {
        "image_size": 32,
        "layers": 1,
        "width": 32,
        "head_width": 32,
        "patch_size": 16,
        "attentional_pool": True,
        "output_tokens": True,
    }
    decoder = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 1}
    clip = open_clip.CoCa(32, decoder, text, vision).double().eval().requires_grad_(False)
    encoder = assert_same(clip, NAMES, 4, "end", False, fast=False)
    assert (encoder(context(NAMES, 4, False), normalize=False).norm(dim=-1) - 1).abs().min() > 1e-3


def test_hugging_face_tower():
    transformers = pytest.importorskip("transformers")
    from open_clip.hf_model import HFTextEncoder

    clip = model(custom=True)
    config = transformers.BertConfig(
        vocab_size=49408, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    clip.text = HFTextEncoder("bert", output_dim=32, config=config, proj_type="linear").double().eval()
    clip.requires_grad_(False)
    assert_same(clip, NAMES, 4, "end", False, fast=False)
    with pytest.raises(CoopError, match=r"method\.class_chunk=N"):
        PromptEncoder(clip, *prompts(NAMES, 4, "end"), False, checkpoint=True)


def test_a_plain_tower_can_recompute_its_layers():
    clip = model(custom=True, no_causal_mask=True)
    assert_same(clip, NAMES, 4, "end", False, fast=False, checkpoint=True)
    assert clip.text.transformer.grad_checkpointing


def test_a_tower_that_cannot_recompute_its_layers_says_what_to_do():
    with pytest.raises(CoopError, match=r"method\.checkpoint=true.*method\.class_chunk=N"):
        PromptEncoder(model(qk_norm=True), *prompts(NAMES, 4, "end"), False, checkpoint=True)


@pytest.mark.parametrize("chunk", [0, -3])
def test_a_chunk_of_no_class(tiny, chunk):
    with pytest.raises(CoopError, match=rf"method\.class_chunk={chunk}.*at least 1"):
        PromptEncoder(tiny, *prompts(NAMES, 4, "end"), False, class_chunk=chunk)


def test_tokens_computed_for_imagenet(tiny):
    encoder = PromptEncoder(tiny, *prompts(IMAGENET_CLASSNAMES, 16, "end"), False)
    assert (encoder.tokens, encoder.tokens_computed) == (77_000, 4021)


@variants
def test_float32_logits(position, class_specific):
    clip = small.small_clip().requires_grad_(False)
    ids, slots = prompts(NAMES, 16, position)
    ctx = small.initial_context(len(NAMES), 16, class_specific).requires_grad_()
    logits, gradient = logits_and_gradient(PromptEncoder(clip, ids, slots, class_specific), ctx, 64)
    expected, expected_gradient = logits_and_gradient(plain(clip, ids, slots), ctx, 64)
    assert (logits - expected).abs().max() < 5e-5
    assert (gradient - expected_gradient).norm() < 1e-5 * expected_gradient.norm()


def lower_precision(precision):
    """The same random tower in one of open_clip's precisions of weights, and in float64."""
    dtype = torch.float16 if "fp16" in precision else torch.bfloat16
    pure = precision.startswith("pure")
    clip = model(cast_dtype=None if pure else dtype)
    clip = clip.to(dtype) if pure else clip
    if not pure:
        convert_weights_to_lp(clip, dtype)
    exact = model()
    exact.load_state_dict({key: value.double() for key, value in clip.state_dict().items()})
    return clip, exact


@pytest.mark.parametrize("precision", ["fp16", "bf16", "pure_fp16", "pure_bf16"])
@variants
def test_towers_of_lower_precision_run_as_they_are(precision, position, class_specific):
    clip, exact = lower_precision(precision)
    assert_no_less_accurate(clip, exact, position, class_specific)


@pytest.mark.parametrize("options", [{}, {"checkpoint": True, "class_chunk": 5}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@variants
def test_autocast(dtype, options, position, class_specific):
    assert_no_less_accurate(model().float(), model(), position, class_specific, autocast=dtype, **options)


def assert_no_less_accurate(clip, exact, position, class_specific, autocast=None, **options):
    """Rounding is not the plain way's but no worse, and context, features and gradient are float32."""
    ids, slots = prompts(NAMES, 4, position)
    ctx = context(NAMES, 4, class_specific, dtype=torch.float32)

    def rounded(features_of):
        def features(ctx):
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                return features_of(ctx)

        return logits_and_gradient(features, ctx)

    fast = rounded(PromptEncoder(clip, ids, slots, class_specific, **options))
    own = rounded(plain(clip, ids, slots))
    expected = logits_and_gradient(plain(exact, ids, slots), ctx.double())
    for got, theirs, true in zip(fast, own, expected, strict=True):
        assert 0 < (got - true).norm() < 1.5 * (theirs - true).norm() < 0.3 * true.norm()


def test_the_model_may_be_cast_after_construction():
    clip = model()
    encoder = PromptEncoder(clip, *prompts(NAMES, 4, "front"), False)
    ctx = context(NAMES, 4, False)
    in_float64 = encoder(ctx)
    in_float32 = PromptEncoder(clip.float(), *prompts(NAMES, 4, "front"), False)(ctx)
    assert 0 < (in_float32 - in_float64).abs().max() < 1e-3
    assert torch.equal(encoder(ctx), in_float32)


def test_weights_may_be_loaded_after_the_first_call():
    clip, other = model(), model(seed=1)
    encoder = PromptEncoder(clip, *prompts(NAMES, 4, "front"), False)
    ctx = context(NAMES, 4, False)
    encoder(ctx)
    clip.load_state_dict(other.state_dict())
    assert torch.equal(encoder(ctx), PromptEncoder(other, *prompts(NAMES, 4, "front"), False)(ctx))


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
@variants
def test_nothing_depends_on_which_call_came_first(tiny, first, position, class_specific):
    ids, slots = prompts(NAMES, 4, position)
    ctx = context(NAMES, 4, class_specific)
    cold, warm = (PromptEncoder(tiny, ids, slots, class_specific) for _ in range(2))
    with first():
        warm(ctx)
    for ours, expected in zip(logits_and_gradient(warm, ctx), logits_and_gradient(cold, ctx), strict=True):
        assert torch.equal(ours, expected)


def test_constants_are_computed_once(tiny, monkeypatch):
    encoder = PromptEncoder(tiny, *prompts(NAMES, 4, "front"), False)
    calls = []
    compute = encoder.tower._compute_seen
    monkeypatch.setattr(encoder.tower, "_compute_seen", lambda *args: calls.append(1) or compute(*args))
    for _ in range(3):
        encoder(context(NAMES, 4, False)).sum().backward()
    assert len(calls) == 1


def test_it_registers_nothing(tiny):
    encoder = PromptEncoder(tiny, *prompts(NAMES, 4, "end"), False)
    encoder(context(NAMES, 4, False))
    assert not list(encoder.state_dict()) and not list(encoder.parameters()) and not list(encoder.buffers())
    assert list(encoder.modules()) == [encoder]


def saved_bytes(encoder, ctx):
    """Bytes that the graph of one forward keeps for the backward pass, weights left out."""
    storages = {}

    def pack(tensor):
        if tensor.requires_grad and not tensor.is_leaf:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = encoder(ctx)
    del features
    return sum(storages.values())


def test_recomputing_keeps_less(tiny):
    ids, slots = prompts(NAMES * 4, 4, "end")
    ctx = context(NAMES * 4, 4, False)
    kept = {
        name: saved_bytes(PromptEncoder(tiny, ids, slots, False, **options), ctx)
        for name, options in {"all": {}, "layers": {"checkpoint": True}, "chunks": {"class_chunk": 6}}.items()
    }
    assert kept["layers"] < kept["all"] / 4
    assert kept["chunks"] < kept["all"] / 20


# class_specific, number of classes (11 and 1 leave a rest), contexts, deep prompts (of each class's own: True)
SHARDED = [
    (False, 12, (), {}),
    (True, 12, (), {}),
    (True, 11, (), {}),
    (False, 1, (), {}),
    (False, 11, (2,), {1: False, 2: True}),
    (True, 11, (2,), {2: True}),
]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two processes got, for each case: features and, averaged over both, the gradient."""
    folder = tmp_path_factory.mktemp("two_processes")
    mp.spawn(_encode_in_two, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _encode_in_two(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    clip, results = FrozenCLIP(model(), small.tokenizer()), []
    for case in SHARDED:
        names, class_specific, learned = _sharded_case(*case)
        encoder = clip.prompt_encoder(*prompts(names, 4, "end"), class_specific)
        assert isinstance(encoder, ShardedPromptEncoder)
        features = encoder(learned[0], dict(zip(case[3], learned[1:], strict=True)), normalize=False)
        _loss(features, rank).backward()
        for tensor in learned:
            dist.all_reduce(tensor.grad)  # DistributedDataParallel averages
        results.append((features.detach(), [tensor.grad / 2 for tensor in learned]))
    assert type(clip.prompt_encoder(*prompts(NAMES, 4, "end"), shard=False)) is PromptEncoder
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _sharded_case(class_specific, classes, contexts, deep):
    """Names, whether contexts are class-specific, and the learned tensors of a case."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(*contexts, *([classes] if class_specific else []), 4, 64)]
    shapes += [(classes, 2, 64) if own else (2, 64) for own in deep.values()]
    learned = [0.5 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return NAMES[:classes], class_specific, [tensor.requires_grad_() for tensor in learned]


def _loss(features, rank):
    """A different loss on each process, as different images give."""
    generator = torch.Generator().manual_seed(rank)
    return (torch.randn(features.shape, generator=generator, dtype=features.dtype) * features**2).sum()


@pytest.mark.parametrize("case", range(len(SHARDED)))
def test_two_processes_equal_one(two_processes, case):
    names, class_specific, learned = _sharded_case(*SHARDED[case])
    encoder = PromptEncoder(model(), *prompts(names, 4, "end"), class_specific)
    expected = encoder(learned[0], dict(zip(SHARDED[case][3], learned[1:], strict=True)), normalize=False)
    ((_loss(expected, 0) + _loss(expected, 1)) / 2).backward()
    for rank in range(2):
        features, averaged_gradients = two_processes[rank][case]
        assert (features - expected).abs().max() < 1e-12
        for averaged, tensor in zip(averaged_gradients, learned, strict=True):
            assert tensor.grad.norm() > 1
            assert (averaged - tensor.grad).abs().max() < 1e-12 * tensor.grad.norm()


def test_one_process_does_not_shard(tiny):
    assert type(FrozenCLIP(tiny, small.tokenizer()).prompt_encoder(*prompts(NAMES, 4, "end"))) is PromptEncoder
