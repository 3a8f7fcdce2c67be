"""Impossible options of the baselines are refused in one message; methods keep what the interface promises."""

import numpy as np
import pytest
import torch
from configs import composed, names
from methods import quick

from coop import CoopError
from coop.config import build_method, check, resolve_epochs
from coop.methods.base import Batch, Labeled, Method
from coop.methods.clip_adapter import ClipAdapter
from coop.methods.dept import DePT
from coop.methods.image_encoder import ImageEncoder
from coop.methods.tip_adapter import TipAdapter
from coop.methods.zero_shot import ZeroShot
from coop.methods.zero_shot_ensemble import ZeroShotEnsemble
from coop.optim.optimizers import build_optimizer
from coop.runs.prompt import load_prompt, save_prompt
from coop.runs.trained import load_into
from coop.training.module import LitClassifier

NAMES = ["dog", "sea_horse", "grand piano"]
METHODS = names("method")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=zero_shot", "method.template=photo"], "method.template=photo: needs one {}"),
        (["method=zero_shot", "method.template='{} or {}'"], "needs one {}"),
        (["method=zero_shot", "method.template='{} {x}'"], "no other braces"),
        (["method=zero_shot_ensemble", "method.templates=8"], "templates=8: CLIP's lists have 80 or 7"),
        (["method=zero_shot_ensemble", "method.templates=[]"], "must not be empty"),
        (["method=zero_shot_ensemble", "method.templates=['a {}', 'a dog']"], "method.templates=a dog"),
        (
            ["method=zero_shot_ensemble", "method.templates=['a {}', 3]"],
            'method.templates=["a {}", 3]: must be int or list of str',
        ),
        (["method=zero_shot_ensemble", "method.templates=all"], "method.templates=all: must be int or list"),
        (["method=linear_probe", "method.C=0"], "method.C=0: must be a positive number"),
        (["method=linear_probe", "method.C=-1.5"], "method.C=-1.5: must be a positive number"),
        (["method=linear_probe", "method.C=strong"], "method.C=strong: must be float or null"),
        (["method=clip_adapter", "method.ratio=0"], "method.ratio=0: must be above 0 and at most 1"),
        (["method=clip_adapter", "method.ratio=1.1"], "method.ratio=1.1"),
        (["method=clip_adapter", "method.reduction=0"], "method.reduction=0: must be at least 1"),
        (["method=tip_adapter", "method.alpha=0"], "method.alpha=0: must be a positive number"),
        (["method=tip_adapter_f", "method.beta=-1"], "method.beta=-1: must be a positive number"),
        (
            ["method=tip_adapter", "method.alpha_max=0.1"],
            "method.alpha_max=0.1: must be above 0.1, where the search starts",
        ),
        (["method=tip_adapter", "method.beta_max=0.05"], "method.beta_max=0.05"),
        (["method=text_bias", "+method.n_ctx=4"], "method.n_ctx: there is no such key"),
        (["method=text_linear", "method.template=x"], "method.template=x"),
        (["method=text_bias", "method.template=x"], "method.template=x"),
        (["method=image_encoder", "method.template=x"], "method.template=x"),
        (["method=tip_adapter", "method.scale=0"], "method.scale=0: must be a positive number"),
        (["method=tip_adapter", "method.templates=[]"], "method.templates=[]: must not be empty"),
        (["method=clap", "method.constraint=l1"], "method.constraint=l1: allowed are l2, cosine, none"),
        (["method=clap", "method.multipliers=balance"], "allowed are zero_shot, balanced, corrected, constant"),
        (
            ["method=clap", "method.constraint=none", "method.adaptive=true"],
            "method.adaptive=true: method.constraint=none",
        ),
        (["method=clap", "augmentation=none"], "view_sampling=pooled with augmentation=none"),
        (["method=lp_pp", "method.iterations=0"], "method.iterations=0: must be at least 1"),
        (["method=lp_pp", "method.templates=[a]"], "method.templates=a: needs one {}"),
        (["method=cross_modal", "method.head=both"], "method.head=both: allowed are linear, adapter, partial"),
        (["method=cross_modal", "method.lr=[0]"], "method.lr=0: must be a positive number"),
        (["method=cross_modal", "method.weight_decay=[-1]"], "method.weight_decay=-1: must not be negative"),
        (["method=cross_modal", "method.weight_decay=[much]"], 'method.weight_decay=["much"]: must be list of float'),
        (["method=cross_modal", "method.batch_size=[8.5]"], "method.batch_size=[8.5]: must be list of int"),
        (["method=cross_modal", "method.batch_size=[1]"], "method.batch_size=1: must be at least 2"),
        (["method=cross_modal", "method.iterations=0"], "method.iterations=0: must be at least 1"),
        (["method=promptsrc", "method.kl_weight=-1"], "method.kl_weight=-1: must not be negative"),
        (["method=cross_modal", "method.lr=[]"], "method.lr=[]: must not be empty"),
        (["method=cross_modal", "method.lr=0.1"], "method.lr=0.1: must be list"),
        (["method=cross_modal", "validation=none", "method.lr=[0.1]"], "nothing to choose among method.weight_decay="),
        (["method=clip_lora", "method.alpha=0"], "method.alpha=0: must be a positive number"),
        (["method=maple", "+method.class_specific=true"], "method.class_specific=True: MaPLe has only"),
        (["method=ivlp", "+method.class_token_position=front"], "IVLP has only class_token_position=end"),
        (["method=promptsrc", "+method.class_specific=true"], "PromptSRC has only class_specific=false"),
        (["optimizer.name=lion"], "optimizer.name=lion: allowed are sgd, adam, adamw"),
        (["optimizer.eps=0"], "optimizer.eps=0"),
    ],
)
def test_refused(overrides, said):
    with pytest.raises(CoopError) as caught:
        check(composed(*overrides))
    assert said in str(caught.value)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_prograds_first_words_go_with_each_position(position):
    """Behind a middle or front class name they only start the context; as a prompt of their own they cannot stand."""
    check(composed("method=prograd", f"method.class_token_position={position}"))


def test_a_hidden_layer_needs_a_unit(small_clip):
    with pytest.raises(CoopError, match=r"method\.reduction=65: at most 64"):
        ClipAdapter(small_clip, NAMES, template="a {}", reduction=65)


def test_options_from_python_are_checked_as_those_of_a_config(small_clip):
    """But for tuples and NumPy's numbers, which a config does not have; its own and its parent's."""
    learner = DePT(small_clip, NAMES, n_ctx=np.int64(3), head_weight=np.float32(0.5))
    assert (learner.ctx.shape[0], learner.head_weight) == (3, 0.5)
    ZeroShotEnsemble(small_clip, NAMES, templates=("a {}.", "the {}."))
    for options, said in [
        ({"n_ctx": "3"}, "method.n_ctx=3: must be int or null, not str"),
        ({"head_weight": 1}, "method.head_weight=1: must be from 0 to below 1"),
    ]:
        with pytest.raises(CoopError, match=said):
            DePT(small_clip, NAMES, **options)


def test_tip_adapter_f_brings_its_own_optimizer_and_the_command_line_wins():
    cfg = composed("method=tip_adapter_f")
    check(cfg)
    assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.eps, cfg.optimizer.warmup_epochs) == (
        "adamw", 1e-3, 1e-4, 0,
    )  # fmt: skip
    assert (resolve_epochs(cfg), cfg.batch_size, cfg.method.train_keys) == (20, 256, True)
    cfg = composed("method=tip_adapter_f", "optimizer.lr=0.1", "epochs=3", "batch_size=8", "method.alpha=2")
    assert (cfg.optimizer.lr, cfg.epochs, cfg.batch_size, cfg.method.alpha) == (0.1, 3, 8, 2)
    coop = composed("method=coop")
    assert (coop.optimizer.name, coop.optimizer.lr, coop.epochs, coop.batch_size) == ("sgd", 0.002, None, 32)


def test_optimizers():
    parameter = torch.nn.Parameter(torch.ones(1))
    options = composed("method=tip_adapter_f").optimizer
    adamw = build_optimizer([parameter], options)
    assert type(adamw) is torch.optim.AdamW
    assert {key: adamw.defaults[key] for key in ("lr", "eps", "weight_decay", "betas")} == {
        "lr": 1e-3, "eps": 1e-4, "weight_decay": 0.01, "betas": (0.9, 0.999),
    }  # fmt: skip
    sgd = build_optimizer([parameter], composed().optimizer)
    assert type(sgd) is torch.optim.SGD
    assert {key: sgd.defaults[key] for key in ("lr", "momentum", "weight_decay", "nesterov", "dampening")} == {
        "lr": 0.002, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False, "dampening": 0,
    }  # fmt: skip


def shots(seed: int, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One view of random image_features (1, N, 64), L2-normalized, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(per_class)
    features = torch.randn(len(labels), 64, generator=generator) + 2 * torch.eye(64)[labels]
    return torch.nn.functional.normalize(features, dim=1)[None], labels


def as_seen(method: Method, features: torch.Tensor) -> torch.Tensor:
    """Features (N, E) as the method's `feature_kind` says; local ones, and states of the tower, are other images'."""
    if method.feature_kind not in ("tokens", "last_layer"):
        return features
    return torch.stack([features, *(features.roll(n, dims=0) for n in (1, 2, 3))], dim=1)


def few_shots(method: Method) -> Labeled:
    """Four training and three validation images of each class."""

    def labeled(part: str) -> tuple[torch.Tensor, torch.Tensor]:
        features, labels = shots(1, 4) if part == "train" else shots(2, 3)
        return as_seen(method, features[0])[None], labels

    return labeled


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded_again(small_clip, name, tmp_path):
    """A method built anew, which never saw the training images, gives the same logits from the file alone."""
    cfg = composed(*quick(name))
    method = build_method(cfg.method, small_clip, NAMES)
    labeled = few_shots(method)
    method.prepare(labeled)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    method.select(labeled)
    save_prompt(tmp_path / "prompt.safetensors", method, cfg, NAMES)

    again = build_method(cfg.method, small_clip, NAMES)
    prompt = load_prompt(tmp_path / "prompt.safetensors")
    load_into(again, prompt, tmp_path)
    features = as_seen(method, shots(3, 5)[0][0])
    assert torch.equal(again.eval().logits(features), method.eval().logits(features))
    assert again.trainable_params == method.trainable_params
    assert prompt.state.keys() == method.state_dict().keys()
    assert not any(key.startswith("prompts.") for key in prompt.state), "hand-crafted prompts need no saving"


@pytest.mark.parametrize("name", METHODS)
def test_a_file_of_another_method_does_not_fit(small_clip, name, tmp_path):
    # What ProGrad learns is CoOp's context.
    cfg = composed("method=coop" if name not in ("coop", "prograd") else "method=text_linear")
    save_prompt(tmp_path / "prompt.safetensors", build_method(cfg.method, small_clip, NAMES), cfg, NAMES)
    other = build_method(composed(*quick(name)).method, small_clip, NAMES)
    with pytest.raises(CoopError, match="does not fit this method"):
        load_into(other, load_prompt(tmp_path / "prompt.safetensors"), tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_the_frozen_clip_is_left_alone(small_clip, name):
    before = {key: value.clone() for key, value in small_clip.model.state_dict().items()}
    method = build_method(composed(*quick(name)).method, small_clip, NAMES).train()
    method.prepare(few_shots(method))
    features, labels = shots(4, 2)
    if method.trained_in_steps:
        features = as_seen(method, features[0])
        if method.needs_images:
            features = method.encode_image(torch.randn(6, 3, 32, 32))
        teacher = small_clip.encode_image(torch.randn(6, 3, 32, 32)) if method.needs_teacher else None
        loss, logits = method.loss(Batch(labels, features, teacher_features=teacher))
        assert logits.shape == (6, 3)
        loss.backward()
        torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1).step()
    assert not any(parameter.requires_grad for parameter in small_clip.parameters())
    assert not set(map(id, small_clip.parameters())) & set(map(id, method.parameters()))
    assert all(torch.equal(value, before[key]) for key, value in small_clip.model.state_dict().items())


def test_prepare_and_select_default_to_nothing(small_clip):
    method = ZeroShot(small_clip, NAMES, template="a {}.")

    def never(part):
        raise AssertionError("features were asked for that nobody needs")

    method.prepare(never)
    method.select(never)
    assert method.chosen == {}


@pytest.mark.parametrize("search", [True, False])
def test_tip_adapter_search_can_be_switched_off(small_clip, search):
    tip = TipAdapter(small_clip, NAMES, templates=["a {}."], alpha=2.5, beta=1.5, search=search)
    labeled = {"train": shots(1, 4), "val": shots(2, 8)}.__getitem__
    tip.prepare(labeled)
    tip.select(labeled)
    assert (tip.chosen != {}) is search
    assert ((tip.alpha.item(), tip.beta.item()) == (2.5, 1.5)) is not search


def test_hand_crafted_prompts_first_asked_for_in_inference_mode_can_be_trained_on(small_clip):
    """Lightning validates in inference mode, whose tensors no gradient can be taken through."""
    method = build_method(composed("method=text_linear").method, small_clip, NAMES).train()
    with torch.inference_mode():
        method.logits(shots(1, 1)[0][0])
    method.loss(Batch(torch.arange(3), shots(1, 1)[0][0]))[0].backward()
    assert method.weight.grad.abs().max() > 0


def test_image_encoder_copies_half_precision_to_full(small_clip):
    import copy

    from coop import FrozenCLIP

    half = FrozenCLIP(copy.deepcopy(small_clip.model).bfloat16(), small_clip.tokenizer)
    method = ImageEncoder(half, NAMES, template="a {}.")
    assert {parameter.dtype for parameter in method.parameters()} == {torch.float32}
    features = method.encode_image(torch.randn(2, 3, 32, 32))
    assert features.dtype == torch.float32
    assert torch.allclose(features.norm(dim=1), torch.ones(2), atol=1e-5)


class Recording(Method):
    """Writes down what is called when."""

    def __init__(self, clip, classnames):
        super().__init__(clip, classnames)
        self.bias, self.calls = torch.nn.Parameter(torch.zeros(len(classnames))), []

    def prepare(self, labeled):
        self.calls.append("prepare")

    def loss(self, image_features, labels):
        self.calls.append("loss")
        return super().loss(image_features, labels)

    def logits(self, image_features):
        return image_features[:, : len(self.classnames)] + self.bias

    def encode_image(self, images):
        self.calls.append("encode_image")
        return images.flatten(1)[:, :64]


@pytest.mark.parametrize("with_images", [False, True])
def test_the_module_asks_the_method_alone(small_clip, with_images):
    method = Recording(small_clip, NAMES)
    module = LitClassifier(method, composed().optimizer, epochs=1)
    module.log = lambda *_, **__: None
    features, labels = shots(1, 2)
    batch = {"label": labels} | (
        {"image": torch.rand(6, 3, 32, 32)} if with_images else {"image_features": features[0]}
    )
    loss = module.training_step(batch, 0)
    logits = module.image_features(batch)[:, :3] if with_images else features[0][:, :3]
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())
    assert method.calls[:2] == (["encode_image", "loss"] if with_images else ["loss"])


def test_the_same_content_is_the_same_file(small_clip, tmp_path):
    """What was resumed is compared with what was not, byte by byte."""
    cfg = composed("method=text_bias")
    method = build_method(cfg.method, small_clip, NAMES)
    contents = set()
    for _ in range(20):
        save_prompt(tmp_path / "prompt.safetensors", method, cfg, ["hai", "naïve 猫"])
        contents.add((tmp_path / "prompt.safetensors").read_bytes())
    assert len(contents) == 1
    assert load_prompt(tmp_path / "prompt.safetensors").metadata["classnames"] == ["hai", "naïve 猫"]
