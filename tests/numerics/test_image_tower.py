"""The image tower with prompts and low-rank weights, against the models' own forward and forwards written out."""

import copy
from functools import cache
from pathlib import Path

import open_clip
import pytest
import small_vit_clip
import torch
from open_clip.timm_model import TimmModel
from small_clip import tokenizer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from coop import FrozenCLIP
from coop.clip.blocks import read_block
from coop.clip.deltas import LowRankTower, encode_text, layers_named, without_padding
from coop.clip.image_tower import ImageTower
from coop.errors import CoopError
from coop.methods.clip_lora import CLIPLoRA
from coop.methods.ivlp import IVLP
from coop.methods.maple import MaPLe
from coop.methods.vpt import VPT
from coop.runs.prompt import Prompt
from coop.runs.trained import load_into

V, E, N, LAYERS = 64, 32, 2, 3
SMALL = {"image_size": 32, "patch_size": 8, "width": V, "head_width": 32, "layers": LAYERS}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": LAYERS}
OPEN_CLIP = {
    "tok": {},
    "avg": {"pool_type": "avg", "final_ln_after_pool": True},
    "no_ln_pre": {"no_ln_pre": True},
    "layer_scale": {"ls_init_value": 0.3},
}
PLAIN = {"img_size": 32, "patch_size": 8, "embed_dim": V, "depth": LAYERS, "num_heads": 2, "num_classes": 0}
MIXED = {"use_rot_pos_emb": True, "rope_type": "mixed", "attn_type": "rope"}
TIMM = {
    "map": lambda: VisionTransformer(**PLAIN, global_pool="map", class_token=False),
    "token": lambda: VisionTransformer(**PLAIN, global_pool="token", pre_norm=True, qk_norm=True, init_values=0.3),
    "avg": lambda: VisionTransformer(**PLAIN, global_pool="avg", reg_tokens=2),
    "eva": lambda: Eva(**PLAIN, use_rot_pos_emb=True, global_pool="token"),
    "eva_avg": lambda: Eva(**PLAIN, use_rot_pos_emb=True, global_pool="avg", swiglu_mlp=True, scale_mlp=True),
    "eva_mixed": lambda: Eva(**PLAIN, **MIXED, global_pool="map", class_token=False),
}
BACKBONES = [*(f"open_clip_{name}" for name in OPEN_CLIP), *(f"timm_{name}" for name in TIMM)]


@cache
def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    library, _, kind = name.partition("_clip_" if name.startswith("open") else "_")
    vision = SMALL | (OPEN_CLIP[kind] if library == "open" else {})
    model = open_clip.CLIP(embed_dim=E, quick_gelu=True, vision_cfg=vision, text_cfg=TEXT)
    if library == "timm":
        model.visual = TimmModel("test_vit", E, image_size=32, proj="linear")
        model.visual.trunk = TIMM[kind]()
    with torch.no_grad():
        for parameter in model.parameters():  # no bias at zero, no scale at one: nothing may be left out unseen
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def backbone(name: str) -> FrozenCLIP:
    """A small CLIP in float64 whose image tower has the parts that the name says, with random weights everywhere."""
    model = copy.deepcopy(built(name))
    torch.manual_seed(0)
    return FrozenCLIP(model, tokenizer(), name=name)


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def prompts(depth: int) -> list[Tensor]:
    torch.manual_seed(2)
    return [torch.randn(N, V, dtype=torch.float64).requires_grad_() for _ in range(depth)]


def naive(visual: nn.Module, pixels: Tensor, deep: list[Tensor]) -> Tensor:
    """Every row in every block, by the model's own blocks: prompts behind the first row, replaced layer by layer."""
    timm = isinstance(visual, TimmModel)
    trunk = visual.trunk if timm else visual
    eva = timm and isinstance(trunk, Eva)
    rope = None
    if eva:
        x, rope = trunk._pos_embed(trunk.patch_embed(pixels))
    else:
        x = trunk._pos_embed(trunk.patch_embed(pixels)) if timm else visual._embeds_without_norm(pixels)

    first = 1 if getattr(trunk, "class_token", None) is not None or not eva else 0
    first = trunk.num_prefix_tokens if eva else first

    def join(x: Tensor, vectors: Tensor) -> Tensor:
        return torch.cat([x[:, :first], vectors.expand(len(x), -1, -1), x[:, first:]], dim=1)

    def without(x: Tensor) -> Tensor:
        return torch.cat([x[:, :first], x[:, first + N :]], dim=1) if deep else x

    x = join(x, deep[0]) if deep else x
    x = (trunk.norm_pre if timm else visual.ln_pre)(x)
    for layer, block in enumerate(trunk.blocks if timm else visual.transformer.resblocks):
        if 0 < layer < len(deep):
            x = join(without(x), deep[layer])
        if eva:  # what has no place is not turned: timm's own way to leave the first rows alone
            block.attn.num_prefix_tokens = first + (N if deep else 0)
            x = block(x, rope=rope[layer] if getattr(trunk, "rope_mixed", False) else rope)
            block.attn.num_prefix_tokens = first
        else:
            x = block(x)
    x = without(x)
    if timm:
        return nn.functional.normalize(visual.head(trunk.forward_head(trunk.norm(x))), dim=-1)
    return nn.functional.normalize(visual._pool(x)[0] @ visual.proj, dim=-1)


def _embeds_without_norm(self, pixels: Tensor) -> Tensor:
    x = self.conv1(pixels).flatten(2).transpose(1, 2)
    first = self.class_embedding.expand(len(x), 1, -1)
    return torch.cat([first, x], dim=1) + self.positional_embedding


@pytest.fixture(autouse=True)
def _parts(monkeypatch):
    monkeypatch.setattr(open_clip.transformer.VisionTransformer, "_embeds_without_norm", _embeds_without_norm, False)


@pytest.mark.parametrize("name", BACKBONES)
def test_without_prompts_it_is_the_model(name):
    clip = backbone(name)
    torch.testing.assert_close(ImageTower(clip)(images()), clip.encode_image(images()), atol=1e-12, rtol=0)
    raw = ImageTower(clip)(images(), normalize=False)
    torch.testing.assert_close(raw, clip.encode_image(images(), "raw"), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, LAYERS])
@pytest.mark.parametrize("name", BACKBONES)
def test_with_prompts_it_is_the_forward_written_out(name, depth):
    clip, ours, theirs = backbone(name), prompts(depth), prompts(depth)
    target = torch.randn(3, E, dtype=torch.float64)
    tower = ImageTower(clip)
    assert (tower.layers, tower.width) == (LAYERS, V)
    features, expected = tower(images(), ours), naive(clip.model.visual, images(), theirs)
    torch.testing.assert_close(features, expected, atol=1e-10, rtol=0)
    assert (features - clip.encode_image(images())).abs().max() > 1e-3, "prompts that change nothing test nothing"
    (features * target).sum().backward()
    (expected * target).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert other.grad.abs().max() > 1e-6
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-10, rtol=0)
    assert all(weight.grad is None and not weight.requires_grad for weight in clip.parameters())


@pytest.mark.parametrize(
    ("name", "depth", "rows"),
    [
        ("open_clip_tok", LAYERS, [17, 17, 1]),
        ("open_clip_tok", 2, [17, 19, 1]),
        ("open_clip_tok", 1, [19, 19, 1]),
        ("open_clip_tok", 0, [17, 17, 1]),
        ("open_clip_avg", LAYERS, [17, 17, 17]),
        ("timm_map", 2, [16, 18, 16]),
        ("timm_token", 2, [17, 19, 1]),
    ],
)
def test_no_row_is_computed_that_nothing_needs(name, depth, rows):
    """Rows that reach the MLP: prompts about to be replaced do not, nor does what the pool never sees."""
    clip, seen = backbone(name), []
    visual = clip.model.visual
    for block in visual.transformer.resblocks if name.startswith("open") else visual.trunk.blocks:
        block.mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    ImageTower(clip)(images(), prompts(depth))
    assert seen == rows


@pytest.mark.parametrize("name", ["open_clip_tok", "timm_map", "timm_eva"])
def test_checkpointing_keeps_less_and_gives_the_same_gradient(name):
    clip, gradients, kept = backbone(name), [], []
    for checkpoint in (False, True):
        learned, sizes = prompts(2), []

        def count(tensor: Tensor, sizes=sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            features = ImageTower(clip)(images(), learned, checkpoint=checkpoint)
        features[:, 0].sum().backward()
        gradients.append(torch.stack([vectors.grad for vectors in learned]))
        kept.append(sum(sizes))
    assert torch.equal(*gradients)
    assert kept[1] < kept[0] / 3


def low_rank(width: int, projections: str = "qkvo", dropout: float = 0.0) -> LowRankTower:
    """Changes of the first and the last layer, none of them zero."""
    torch.manual_seed(3)
    tower = LowRankTower(width, LAYERS, [0, LAYERS - 1], projections, rank=2, scale=0.7, dropout=dropout).double()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return tower


def dense(block: nn.Module, changes: nn.ModuleDict, width: int) -> dict[str, Tensor]:
    """A block's weights with the changes added, by the model's own names."""
    ours = type(block).__name__ == "ResidualAttentionBlock"
    whole, out = ("attn.in_proj_weight", "attn.out_proj.weight") if ours else ("attn.qkv.weight", "attn.proj.weight")
    zero = torch.zeros(width, width, dtype=torch.float64)
    added = {name: changes[name].scale * changes[name].B @ changes[name].A for name in changes}
    return {
        whole: block.get_parameter(whole) + torch.cat([added.get(name, zero) for name in "qkv"]),
        out: block.get_parameter(out) + added.get("o", zero),
    }


@pytest.mark.parametrize("projections", ["q", "kv", "qkvo"])
@pytest.mark.parametrize("name", ["open_clip_tok", "open_clip_avg", "timm_map", "timm_token"])
def test_low_rank_weights_are_the_dense_weights_with_their_product_added(name, projections):
    clip, ours, theirs = backbone(name), low_rank(V, projections), low_rank(V, projections)
    target, visual = torch.randn(3, E, dtype=torch.float64), clip.model.visual
    prefix = "transformer.resblocks" if name.startswith("open") else "trunk.blocks"
    weights = {
        f"{prefix}.{layer}.{key}": value
        for layer, changes in theirs.changes.items()
        for key, value in dense(visual.get_submodule(f"{prefix}.{layer}"), changes, V).items()
    }
    features = ImageTower(clip)(images(), deltas=ours.by_layer())
    expected = nn.functional.normalize(torch.func.functional_call(visual, weights, images()), dim=-1)
    torch.testing.assert_close(features, expected, atol=1e-10, rtol=0)
    (features * target).sum().backward()
    (expected * target).sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert other.grad.abs().max() > 1e-6
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-10, rtol=0)
    assert all(weight.grad is None for weight in clip.parameters())


@pytest.mark.parametrize("name", ["open_clip_tok", "timm_map"])
def test_merged_weights_give_the_same_features_and_leave_the_frozen_tower_alone(name):
    clip, changes = backbone(name), low_rank(V)
    tower, before = ImageTower(clip), backbone(name).model.state_dict()
    merged = tower.merged(changes)
    expected = tower(images(), deltas=changes.by_layer(), normalize=False)
    torch.testing.assert_close(merged(images()), expected, atol=1e-12, rtol=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in clip.model.state_dict().items())


@pytest.mark.parametrize("checkpoint", [False, True])
def test_low_rank_weights_of_the_text_encoder(checkpoint):
    clip, ours, theirs = backbone("open_clip_tok"), low_rank(64), low_rank(64)
    ids = clip.tokenize(["a photo of a cat.", "a photo of a pair of shoes.", "two"])
    target, model = torch.randn(3, E, dtype=torch.float64), clip.model
    features = encode_text(clip, without_padding(ids), ours.by_layer(), checkpoint)
    weights = {
        f"transformer.resblocks.{layer}.{key}": value
        for layer, changes in theirs.changes.items()
        for key, value in dense(model.transformer.resblocks[int(layer)], changes, 64).items()
    }
    with torch.nn.utils.stateless._reparametrize_module(model, weights):
        expected = model.encode_text(ids, normalize=True)
        torch.testing.assert_close(features, expected, atol=1e-10, rtol=0)
        (expected * target).sum().backward()
    (features * target).sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-10, rtol=0)


def test_dropout_is_of_each_branch_apart_and_off_outside_training():
    clip = backbone("open_clip_tok")
    plain, dropped = low_rank(V), low_rank(V, dropout=0.5)
    tower = ImageTower(clip)
    same = tower(images(), deltas=plain.by_layer())
    assert torch.equal(tower(images(), deltas=dropped.eval().by_layer()), same)
    assert (tower(images(), deltas=dropped.train().by_layer()) - same).abs().max() > 1e-3
    masks = []
    for change in dropped.changes["0"].values():
        change.dropout.register_forward_hook(lambda module, inputs, output: masks.append(output == 0))
    tower(images(), deltas=dropped.by_layer())
    q, k, v = masks[:3]
    assert not torch.equal(q, k) and not torch.equal(k, v)
    assert 0.4 < torch.stack([q, k, v]).double().mean() < 0.6


def test_checkpointing_recomputes_with_the_same_dropout():
    clip, gradients = backbone("open_clip_tok"), []
    for checkpoint in (False, True):
        changes = low_rank(V, dropout=0.5).train()
        torch.manual_seed(4)
        ImageTower(clip)(images(), deltas=changes.by_layer(), checkpoint=checkpoint)[:, 0].sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in changes.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_a_half_precision_tower_gives_float32():
    clip = backbone("open_clip_tok")
    half = FrozenCLIP(copy.deepcopy(clip.model).bfloat16(), clip.tokenizer)
    vectors = [nn.Parameter(vector.detach().float()) for vector in prompts(2)]
    features = ImageTower(half)(images().float(), vectors)
    assert features.dtype == torch.float32
    expected = ImageTower(clip)(images(), prompts(2))
    assert (features.double() * expected).sum(-1).min() > 0.99
    features.sum().backward()
    assert all(vector.grad.dtype == torch.float32 for vector in vectors)


RESNET = {"layers": [1, 1, 1, 1], "width": 32, "head_width": 64, "image_size": 32}


def without_layers(kind: str, tiny: FrozenCLIP) -> FrozenCLIP:
    if kind == "tiny":
        return tiny
    vision = RESNET if kind == "ModifiedResNet" else SMALL | {"attentional_pool": True}
    model = open_clip.CLIP(embed_dim=E, vision_cfg=vision, text_cfg=TEXT)
    return FrozenCLIP(model, tokenizer(), name=kind)


@pytest.mark.parametrize(
    "build",
    [
        lambda clip: VPT(clip, ["cat", "dog"], template="a {}."),
        lambda clip: MaPLe(clip, ["cat", "dog"], depth=2),
        lambda clip: CLIPLoRA(clip, ["cat", "dog"], templates=["a {}."]),
    ],
    ids=["vpt", "maple", "clip_lora"],
)
@pytest.mark.parametrize("kind", ["tiny", "ModifiedResNet", "attentional_pool"])
def test_backbones_that_cannot_are_refused_and_those_that_can_are_named(kind, build, tiny_clip):
    clip = without_layers(kind, tiny_clip)
    with pytest.raises(CoopError, match=rf"backbone {clip.name}: .*backbone=vit_b16, .*siglip2_vit_b16"):
        build(clip)


def test_layers_of_an_unknown_kind_are_refused_before_anything_runs():
    clip = backbone("open_clip_tok")
    clip.model.visual.transformer.resblocks[1] = nn.Identity()
    with pytest.raises(CoopError, match="Identity"):
        ImageTower(clip)


def test_low_rank_weights_of_layers_that_take_none_are_refused_before_anything_runs():
    with pytest.raises(CoopError, match="EvaBlock"):
        CLIPLoRA(backbone("timm_eva"), ["cat", "dog"], templates=["a {}."])
    CLIPLoRA(backbone("timm_eva"), ["cat", "dog"], templates=["a {}."], encoder="text")
    assert read_block(backbone("timm_eva").model.visual.trunk.blocks[0]) is None


NAMES = ["cat", "dog"]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda c: VPT(c, NAMES, template="a {}.", depth_vision=5), "method.depth_vision=5: the image tower of small "),
        (lambda c: VPT(c, NAMES, template="a {}.", depth_vision=0), "method.depth_vision=0: must be at least 1"),
        (lambda c: VPT(c, NAMES, template="a {}.", n_ctx_vision=0), "method.n_ctx_vision=0: must be at least 1"),
        (lambda c: MaPLe(c, NAMES, depth=5), "method.depth=5: the text encoder of small has 4 layers"),
        (lambda c: MaPLe(c, NAMES, depth=0), "method.depth=0: must be at least 1"),
        (lambda c: IVLP(c, NAMES, depth_text=5, depth_vision=1), "method.depth_text=5: the text encoder of small "),
        (
            lambda c: IVLP(c, NAMES, depth_text=1, depth_vision=5),
            "method.depth_vision=5: the image tower of small has 4",
        ),
        (lambda c: IVLP(c, NAMES, n_ctx=0, depth_text=3), "method.n_ctx=0: must be at least 1 and fit"),
        (lambda c: MaPLe(c, NAMES, n_ctx=0, depth=3), "method.n_ctx=0: must be at least 1 and fit"),
        (
            lambda c: MaPLe(c, NAMES, n_ctx=9, ctx_init="a photo of a", depth=3),
            "put more X before {}, or lower method.",
        ),
        (
            lambda c: MaPLe(c, NAMES, ctx_init="a photo of a", class_token_position="front", depth=3),
            "method.class_token_position=front: MaPLe has only class_token_position=end",
        ),
        (lambda c: CLIPLoRA(c, NAMES, templates=["a {}."], rank=0), "method.rank=0: must be at least 1"),
        (lambda c: CLIPLoRA(c, NAMES, templates=["a {}."], layers=[4]), "method.layers: 4 is not among the tower's"),
        (lambda c: CLIPLoRA(c, NAMES, templates=["a {}."], layers=[-1]), "method.layers: -1 is not among the tower's"),
        (lambda c: CLIPLoRA(c, NAMES, templates=["a {}."], layers="top"), "method.layers=top: allowed are all, bottom"),
        (lambda c: CLIPLoRA(c, NAMES, templates=["a {}."], layers=[]), "method.layers=[]"),
        (lambda c: CLIPLoRA(c, NAMES, templates=["a {}."], params=["x"]), "method.params=x: allowed are q, k, v, o"),
        (lambda c: CLIPLoRA(c, NAMES, templates=["a {}."], dropout=1.0), "method.dropout=1.0: must be from 0"),
    ],
)
def test_what_the_tower_has_not_is_refused(build, said):
    clip = FrozenCLIP(small_vit_clip.small_vit_clip(), tokenizer(), name="small")
    with pytest.raises(CoopError) as caught:
        build(clip)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("trained", "loaded", "said"),
    [
        (lambda c: VPT(c, NAMES, template="a {}.", depth_vision=2), lambda c: VPT(c, NAMES, template="a {}.", depth_vision=3),
         "image_prompts.2"),
        (lambda c: CLIPLoRA(c, NAMES, templates=["a {}."], rank=2), lambda c: CLIPLoRA(c, NAMES, templates=["a {}."], rank=4),
         "torch.Size([128, 4])"),
    ],
    ids=["depth", "rank"],
)  # fmt: skip
def test_a_file_of_another_depth_or_rank_is_one_message(trained, loaded, said):
    clip = FrozenCLIP(small_vit_clip.small_vit_clip(), tokenizer(), name="small")
    prompt = Prompt(trained(clip).state_dict(), {})
    with pytest.raises(CoopError) as caught:
        load_into(loaded(clip), prompt, Path("prompt.safetensors"))
    assert str(caught.value).startswith("prompt.safetensors: does not fit this method") and said in str(caught.value)


def test_layers_by_name():
    assert layers_named("all", 12) == list(range(12))
    assert layers_named("bottom", 12) == [0, 1, 2, 3]
    assert layers_named("mid", 12) == [4, 5, 6, 7]
    assert layers_named("up", 12) == [8, 9, 10, 11]
    assert layers_named("half-bottom", 12) == [0, 1, 2, 3, 4, 5]
    assert layers_named("half-up", 12) == [6, 7, 8, 9, 10, 11]
    assert layers_named("top3", 12) == [9, 10, 11]
    assert layers_named([5, 2], 12) == [5, 2]
