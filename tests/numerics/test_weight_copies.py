"""Methods that train copies of single weights, against the same written out on a copy of the whole model."""

import copy

import open_clip
import pytest
import pytorch_lightning as pl
import small_vit_clip as small
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import ModelCheckpoint
from reference_checks.common import CLASSNAMES, clip, images, labels, train
from small_clip import tokenizer
from torch import nn
from torch.utils.data import DataLoader

from coop import FrozenCLIP
from coop.clip.deltas import TrainedCopies, encode_text, layer_norms, visual_projection
from coop.errors import CoopError
from coop.methods.base import Batch
from coop.methods.prolip import ProLIP
from coop.methods.two_stage import TwoStage
from coop.training.module import LitClassifier

ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "warmup_epochs": 0, "eta_min": 1e-6, "per": "step"}
EPOCHS, PER_EPOCH, SIZE = 5, 3, 8
SWITCH = int(0.6 * EPOCHS * PER_EPOCH)  # step 9 of 15


def batches() -> list[dict]:
    pairs = zip(images(24).split(SIZE), labels(24).split(SIZE), strict=True)
    return [{"image": x, "label": y} for x, y in pairs]


def two_stage() -> TwoStage:
    return TwoStage(clip(), CLASSNAMES, template="a photo of a {}.")


def prompts_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model.encode_text(ids, normalize=True)


def written_out() -> tuple[list[float], nn.Module, torch.Tensor]:
    """2SFS on a copy of the model: losses, the tuned model, the classifier."""
    frozen = clip()
    model = copy.deepcopy(frozen.model)
    ids = frozen.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in CLASSNAMES])
    norms = [p for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.requires_grad_(True).parameters()]
    classifier = torch.zeros(12, small.EMBED_DIM, requires_grad=True)
    # One optimizer for each stage: what rests is not touched.
    first, second = (torch.optim.AdamW(p, lr=ADAMW["lr"], weight_decay=0.1) for p in (norms, [classifier]))
    total, losses = EPOCHS * PER_EPOCH, []
    for step in range(total):
        batch = batches()[step % PER_EPOCH]
        rate = 1e-6 + 0.5 * (ADAMW["lr"] - 1e-6) * (1 + torch.cos(torch.tensor(torch.pi * step / total)).item())
        if step == SWITCH:
            classifier.data = prompts_of(model, ids).detach()
        features = F.normalize(model.encode_image(batch["image"]), dim=-1)
        weights = prompts_of(model, ids) if step < SWITCH else classifier
        features = features if step < SWITCH else features.detach()
        loss = F.cross_entropy(model.logit_scale.exp().detach() * features @ weights.T, batch["label"])
        optimizer = first if step < SWITCH else second
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
    return losses, model, classifier


def test_two_stages_are_two_stages(tmp_path):
    method, (losses, model, classifier) = two_stage(), written_out()
    trace = train(method, batches(), EPOCHS, ADAMW, tmp_path)
    assert trace.losses == pytest.approx(losses, abs=1e-4)
    assert losses[-1] < 0.9 * losses[0]
    torch.testing.assert_close(method.weight, classifier, atol=2e-5, rtol=0)
    with torch.no_grad():
        features = method.encode_image(images(4))
        torch.testing.assert_close(features, F.normalize(model.encode_image(images(4)), dim=-1), atol=1e-5, rtol=0)
        scale = clip().logit_scale.exp()
        torch.testing.assert_close(method.logits(features), scale * features @ classifier.T, atol=1e-3, rtol=0)
        method.same_classes = False  # other classes: the tuned text encoder
        ids = clip().tokenize([f"a photo of a {name.replace('_', ' ')}." for name in CLASSNAMES])
        expected = scale * features @ prompts_of(model, ids).T
        torch.testing.assert_close(method.logits(features), expected, atol=1e-3, rtol=0)
        assert (expected - scale * features @ classifier.T).abs().max() > 0.1


def test_what_rests_has_no_gradient_and_validation_follows_the_stage():
    method = two_stage()
    norms = list(method.norms.parameters())
    for step, learning, resting in ((0, norms, [method.weight]), (8, norms, [method.weight]),
                                    (9, [method.weight], norms), (14, [method.weight], norms)):  # fmt: skip
        features = method.encode_image(images(4))
        loss, logits = method.loss(Batch(labels(4), features, step=step, steps=15))
        method.zero_grad()
        method.backward(loss)
        assert all(parameter.grad is None for parameter in resting)
        assert all(parameter.grad.abs().max() > 0 for parameter in learning)
        with torch.no_grad():
            torch.testing.assert_close(method.logits(features), logits, atol=1e-4, rtol=0)
    assert two_stage().second, "what is loaded has both stages behind it"


class Kept(ModelCheckpoint):
    """One file for each epoch."""

    def __init__(self, folder):
        super().__init__(folder, filename="{epoch}", save_top_k=-1)


def fit(folder, ckpt_path=None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    method = two_stage()
    module = LitClassifier(method, ADAMW, EPOCHS)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, logger=False, callbacks=[Kept(folder)], enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches(), batch_size=None), ckpt_path=ckpt_path, weights_only=True)
    return method.state_dict()


def test_resumed_in_either_stage_to_the_last_digit(tmp_path):
    """The second stage begins with the first step of epoch 3 (from 0)."""
    whole = fit(tmp_path / "whole")
    for epoch in (1, 2, 3):  # in the first stage, at its end, in the second
        resumed = fit(tmp_path / f"from{epoch}", tmp_path / "whole" / f"epoch={epoch}.ckpt")
        assert all(torch.equal(resumed[key], value) for key, value in whole.items()), epoch


def test_prolip_is_the_projection_held_near_its_start(tmp_path):
    method = ProLIP(clip(), CLASSNAMES, templates=["a photo of a {}."], penalty=0.5)
    visual = copy.deepcopy(clip().model.visual)
    visual.proj.requires_grad_(True)
    optimizer, losses = torch.optim.Adam([visual.proj], lr=0.001), []
    text = clip().encode_text([f"a photo of a {name.replace('_', ' ')}." for name in CLASSNAMES])
    for step in range(6):
        batch = batches()[step % PER_EPOCH]
        logits = clip().logit_scale.exp() * F.normalize(visual(batch["image"]), dim=-1) @ text.T
        loss = F.cross_entropy(logits, batch["label"])
        loss = loss + 0.5 * (visual.proj - clip().model.visual.proj).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    constant = {"name": "adam", "lr": 0.001, "weight_decay": 0.0, "warmup_epochs": 0, "schedule": "constant"}
    trace = train(method, batches(), 2, constant, tmp_path)
    assert trace.losses == pytest.approx(losses, abs=1e-4)
    (learned,) = method.parameters()
    torch.testing.assert_close(learned, visual.proj, atol=1e-5, rtol=0)
    assert (learned - clip().model.visual.proj).abs().max() > 1e-3


@pytest.mark.parametrize("tower", ["ViT", "ModifiedResNet", "timm", "half"])
def test_copies_in_place_of_the_models_own(tower):
    torch.manual_seed(0)
    vision = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "image_size": 32}
    if tower == "timm":
        vision = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "token",
                  "timm_proj": "linear", "image_size": 160}  # fmt: skip
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    model = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).eval()
    if tower in ("ViT", "half"):
        model = small.small_vit_clip()
    model = model.bfloat16() if tower == "half" else model.double()
    frozen = FrozenCLIP(model, tokenizer(), name=tower)
    names = [visual_projection(frozen), "ln_final.weight", "transformer.resblocks.0.ln_1.bias"]
    copies, changed = TrainedCopies(frozen, names), copy.deepcopy(frozen.model)
    with torch.no_grad():
        for name, weight in zip(names, copies.weights, strict=True):
            weight.add_(0.3 * torch.randn_like(weight))
            changed.get_parameter(name).copy_(weight)
    size = 160 if tower == "timm" else 48 if tower in ("ViT", "half") else 32
    pixels = torch.randn(2, 3, size, size, dtype=torch.float32 if tower == "half" else torch.float64)
    ids = frozen.tokenize(["a cat", "two dogs"])
    image, words = copies.encode_image(pixels), copies(encode_text, frozen, ids[:, :5])
    assert image.dtype == (torch.float32 if tower == "half" else torch.float64)
    same = FrozenCLIP(changed, frozen.tokenizer, name="changed")
    atol = 0.02 if tower == "half" else 1e-10
    torch.testing.assert_close(image, same.encode_image(pixels), atol=atol, rtol=0)
    torch.testing.assert_close(words, same.encode_text(["a cat", "two dogs"]), atol=atol, rtol=0)
    assert (image - frozen.encode_image(pixels)).abs().max() > 0.01
    (image[:, 0].sum() + words[:, 0].sum()).backward()
    assert all(weight.grad.abs().max() > 0 for weight in copies.parameters())
    assert all(weight.grad is None for weight in frozen.parameters())


def test_all_layer_norms_of_both_towers_and_nothing_else():
    names = layer_norms(clip())
    assert len(names) == 2 * (4 * 2 + 2) + 2 * (4 * 2 + 1)  # image: four layers, ln_pre, ln_post; text: ln_final
    assert all("ln_" in name and name.endswith(("weight", "bias")) for name in names)
    assert two_stage().trainable_params == 20 * 128 + 18 * 128 + 12 * 64


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"first_stage": 0}, "method.first_stage=0: must be above 0 and below 1"),
        ({"first_stage": 1}, "method.first_stage=1: must be above 0 and below 1"),
        ({"template": "a photo"}, "method.template=a photo"),
    ],
)
def test_two_stage_refuses(options, said):
    with pytest.raises(CoopError) as caught:
        TwoStage(clip(), CLASSNAMES, **{"template": "a {}.", **options})
    assert said in str(caught.value)


def test_towers_without_the_weights_are_refused(tiny_clip):
    with pytest.raises(CoopError, match=r"backbone tiny: its image tower .* has no LayerNorm to train; ViTs have"):
        TwoStage(tiny_clip, CLASSNAMES, template="a {}.")
    ProLIP(tiny_clip, CLASSNAMES, templates=["a {}."])
    with pytest.raises(CoopError, match=r"method\.penalty=-1\.0: must be at least 0; with shots=-1, give"):
        ProLIP(tiny_clip, CLASSNAMES, templates=["a {}."], penalty=-1.0)
    model = copy.deepcopy(clip().model)
    model.visual.proj = None
    with pytest.raises(CoopError, match=r"backbone siglip: .* does not end in a projection that could be trained"):
        ProLIP(FrozenCLIP(model, clip().tokenizer, name="siglip"), CLASSNAMES, templates=["a {}."])
