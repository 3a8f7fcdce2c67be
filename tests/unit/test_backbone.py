"""FrozenCLIP: frozen and in eval mode whatever happens, and equal to open_clip's own calls."""

import copy

import numpy as np
import open_clip
import pytest
import pytorch_lightning as pl
import small_clip as small
import torch
import torch.nn.functional as F
from clip_folder import write_clip_folder
from torch.utils.data import DataLoader

from coop import CoopError, FrozenCLIP, PromptLearner
from coop.training.module import LitClassifier

TEXTS = ["a photo of a dog.", "a rather long photo of a grey cat on a mat.", "x"]
OPTIMIZER = {
    "name": "sgd",
    "lr": 0.002,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "eps": 1e-8,
    "warmup_epochs": 1,
    "warmup_lr": 1e-5,
}


def images(count: int = 4, size: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal((count, 3, size, size)).astype(np.float32))


def resnet() -> torch.nn.Module:
    """A small CLIP of OpenAI's ResNet kind: batch norm and attention pooling."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=True)


@pytest.fixture
def resnet_clip() -> FrozenCLIP:
    return FrozenCLIP(resnet(), small.tokenizer(), name="resnet")


def batch_norm_state(clip: FrozenCLIP) -> dict[str, torch.Tensor]:
    state = clip.model.state_dict()
    kept = {key: value.clone() for key, value in state.items() if "running_" in key or "num_batches" in key}
    assert kept, "this model has no batch norm"
    return kept


def all_eval(clip: FrozenCLIP) -> bool:
    return not any(module.training for module in clip.modules())


def test_train_does_not_reach_the_towers(resnet_clip):
    before = batch_norm_state(resnet_clip)
    assert resnet_clip.train(True) is resnet_clip
    assert all_eval(resnet_clip)
    torch.nn.ModuleList([resnet_clip]).train()
    assert all_eval(resnet_clip)
    first, second = resnet_clip.encode_image(images()), resnet_clip.encode_image(images()[:1])
    assert all(torch.equal(before[key], value) for key, value in batch_norm_state(resnet_clip).items())
    assert torch.allclose(first[:1], second, atol=1e-6), "in train mode batch norm would mix the images of a batch"


def test_lightning_does_not_reach_the_towers(resnet_clip, tmp_path):
    before = {key: value.clone() for key, value in resnet_clip.model.state_dict().items()}
    learner = PromptLearner(resnet_clip, ["dog", "cat"], n_ctx=2)
    start = learner.ctx.detach().clone()
    batches = [{"image": images(), "label": torch.tensor([0, 1, 0, 1])}] * 2
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(LitClassifier(learner, OPTIMIZER, epochs=2), DataLoader(batches, batch_size=None))
    assert all_eval(resnet_clip)
    assert all(torch.equal(before[key], value) for key, value in resnet_clip.model.state_dict().items())
    assert (learner.ctx - start).abs().max() > 0, "nothing was trained at all"


def test_no_parameter_takes_a_gradient(small_clip):
    assert not any(parameter.requires_grad for parameter in small_clip.parameters())
    assert not small_clip.encode_image(images()).requires_grad
    assert not small_clip.encode_text(TEXTS).requires_grad


@pytest.mark.parametrize("build", [small.small_clip, resnet], ids=["vit", "resnet"])
def test_features_equal_open_clips_own(build):
    plain = build().eval()
    clip = FrozenCLIP(copy.deepcopy(plain), small.tokenizer())
    with torch.no_grad():
        expected_images = F.normalize(plain.encode_image(images()), dim=-1)
        expected_texts = F.normalize(plain.encode_text(small.tokenizer()(TEXTS)), dim=-1)
    assert torch.allclose(clip.encode_image(images()), expected_images, atol=1e-6)
    assert torch.allclose(clip.encode_text(TEXTS), expected_texts, atol=1e-6)
    assert torch.allclose(clip.encode_image(images()).norm(dim=-1), torch.ones(4), atol=1e-6)
    assert torch.allclose(clip.encode_text(TEXTS).norm(dim=-1), torch.ones(3), atol=1e-6)


def test_many_texts_equal_one_at_a_time(small_clip):
    texts = [f"photo number {number}" for number in range(300)]
    whole = small_clip.encode_text(texts)
    assert whole.shape == (300, 64)
    for index in (0, 255, 256, 299):
        assert torch.allclose(whole[index], small_clip.encode_text([texts[index]])[0], atol=1e-6)


@pytest.mark.parametrize("text", [*TEXTS, "wow!", "really?!", "!", "dog (animal)", "  two  spaces ", "", "naïve café"])
def test_token_ids_are_open_clips(small_clip, text):
    expected = small.tokenizer()([text])
    assert torch.equal(small_clip.tokenize([text]), expected)
    (row,) = small_clip.token_ids([text])
    assert row == expected[0, : len(row)].tolist()
    assert row[0] == 49406
    assert row[-1] == 49407


def test_a_text_that_does_not_fit_is_refused(small_clip):
    fits = "dog " * 75
    assert small_clip.tokenize([fits])[0, -1] == 49407
    with pytest.raises(CoopError, match=r"has 78 tokens; the text tower of small takes 77"):
        small_clip.encode_text(["a dog", "dog " * 76])


def with_changed(key: str) -> FrozenCLIP:
    model = small.small_clip()
    with torch.no_grad():
        model.state_dict()[key].view(-1)[0] += 1e-6
    return FrozenCLIP(model, small.tokenizer())


def test_fingerprint_is_that_of_the_weights(small_clip):
    fingerprint = small_clip.fingerprint()
    assert FrozenCLIP(small.small_clip(), small.tokenizer(), name="other").fingerprint() == fingerprint
    for key in ("visual.conv1.weight", "transformer.resblocks.3.mlp.c_fc.bias", "token_embedding.weight"):
        assert with_changed(key).fingerprint() != fingerprint


def test_fingerprint_follows_the_weights():
    """Features that were kept under the old one are not those of the changed model."""
    clip = FrozenCLIP(small.small_clip(), small.tokenizer())
    clip.model.visual.ln_post.bias.data.zero_()
    before, bias = clip.fingerprint(), clip.model.visual.ln_post.bias
    with torch.no_grad():
        bias[0] += 1
    assert clip.fingerprint() != before
    with torch.no_grad():
        bias.zero_()
    clip.release_image_tower()
    assert clip.model.visual is None and clip.fingerprint() == before


def test_fingerprint_sees_preprocessing_and_precision(small_clip):
    model = small.small_clip()
    model.visual.preprocess_cfg = {"size": (32, 32), "mean": (0.1, 0.5, 0.5)}
    assert FrozenCLIP(model, small.tokenizer()).fingerprint() != small_clip.fingerprint()
    half = FrozenCLIP(small.small_clip().half(), small.tokenizer())
    assert half.fingerprint() != small_clip.fingerprint()


@pytest.mark.parametrize("change", ["activation", "heads"])
def test_fingerprint_sees_what_is_no_weight(small_clip, change):
    """The same weights give other features with another activation or number of heads: equal prints would lie."""
    cfg = copy.deepcopy(small.MODEL_CFG)
    if change == "activation":
        cfg["quick_gelu"] = False
    else:
        cfg["vision_cfg"]["head_width"] = 32
    model = open_clip.CLIP(**cfg).eval()
    model.load_state_dict(small.small_clip().state_dict())
    other = FrozenCLIP(model, small.tokenizer())
    assert (other.encode_image(images()) - small_clip.encode_image(images())).abs().max() > 1e-4
    assert other.fingerprint() != small_clip.fingerprint()


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    return write_clip_folder(tmp_path_factory.mktemp("clip") / "small")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "pure_fp16", "pure_bf16"])
def test_half_precision_towers_give_float32(small_folder, precision):
    full = FrozenCLIP.load(f"local-dir:{small_folder}")
    clip = FrozenCLIP.load(f"local-dir:{small_folder}", precision=precision)
    tolerance = 2e-3 if "fp16" in precision else 1e-2
    for features, expected in (
        (clip.encode_image(images()), full.encode_image(images())),
        (clip.encode_text(TEXTS), full.encode_text(TEXTS)),
    ):
        assert features.dtype == torch.float32
        assert 0 < (features - expected).abs().max() < tolerance
    learner = PromptLearner(clip, ["dog", "grey cat"], n_ctx=2)
    assert learner.ctx.dtype == torch.float32
    text_features = learner()
    assert text_features.dtype == torch.float32
    text_features[0, 0].backward()
    assert learner.ctx.grad.dtype == torch.float32
    assert learner.ctx.grad.norm() > 0
    assert clip.logit_scale.dtype == torch.float32


def test_double_precision_is_kept():
    clip = FrozenCLIP(small.small_clip().double(), small.tokenizer())
    assert clip.encode_image(images().double()).dtype == torch.float64
    assert PromptLearner(clip, ["dog"], n_ctx=2)().dtype == torch.float64


def test_preprocessing_is_the_models_own(tiny_clip, small_clip):
    cfg = tiny_clip.preprocess_cfg
    assert (cfg.size, cfg.interpolation, cfg.resize_mode) == ((224, 224), "bicubic", "shortest")
    assert tuple(cfg.mean) == tuple(cfg.std) == (0.5, 0.5, 0.5)
    assert small_clip.preprocess_cfg.size in (32, (32, 32))


def test_logit_scale_is_a_float32_scalar(small_clip):
    assert small_clip.logit_scale.shape == ()
    assert small_clip.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-6)


def test_fingerprint_is_the_same_before_and_after_use():
    """Saving memory in training (`checkpoint=True`) must not make a prompt look like another backbone's."""
    cfg = {**small.MODEL_CFG, "text_cfg": {**small.MODEL_CFG["text_cfg"], "no_causal_mask": True, "layers": 1}}
    torch.manual_seed(0)
    model = open_clip.CLIP(**cfg)
    untouched = FrozenCLIP(copy.deepcopy(model), small.tokenizer()).fingerprint()
    clip = FrozenCLIP(model, small.tokenizer())
    PromptLearner(clip, ["dog", "cat"], n_ctx=2, checkpoint=True)().sum().backward()
    clip.train()
    assert clip.fingerprint() == untouched
