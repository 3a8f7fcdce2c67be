"""The baselines against formulas written by hand, scikit-learn called by hand, and finite differences."""

import math

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from sklearn.linear_model import LogisticRegression

from coop import CoopError, FrozenCLIP
from coop.methods.base import Batch
from coop.methods.clap import CLAP
from coop.methods.clip_adapter import RATIOS, ClipAdapter
from coop.methods.image_encoder import ImageEncoder
from coop.methods.linear_probe import LinearProbe
from coop.methods.text_bias import TextBias
from coop.methods.text_linear import TextLinear
from coop.methods.tip_adapter import TipAdapter
from coop.methods.zero_shot import ZeroShot
from coop.methods.zero_shot_ensemble import ZeroShotEnsemble
from coop.training.module import build_optimizer

NAMES = ["dog", "sea_horse", "grand piano"]
TEMPLATE = "a photo of a {}."
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
RESNET = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8}
COCA = (
    TEXT,
    TEXT | {"embed_cls": True, "output_tokens": True},
    VIT | {"attentional_pool": True, "output_tokens": True},
)
FAMILIES = {
    "vit": lambda: open_clip.CLIP(24, VIT, TEXT),
    "vit_quickgelu": lambda: open_clip.CLIP(24, VIT, TEXT, quick_gelu=True),
    "resnet": lambda: open_clip.CLIP(24, RESNET, TEXT, quick_gelu=True),
    "custom_text": lambda: open_clip.CustomTextCLIP(24, VIT, TEXT),
    "coca": lambda: open_clip.CoCa(24, *COCA),
}


def random_clip(family: str, dtype: torch.dtype = torch.float32) -> FrozenCLIP:
    """A small model with random weights, large enough to tell texts and images apart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[family]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(0.3 * torch.randn_like(parameter))
                elif parameter.dim() == 1:  # ResNets start with gains of zero, which hide what lies below
                    parameter.add_(0.1 * torch.randn_like(parameter))
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    return FrozenCLIP(model.to(dtype), tokenizer, name=family)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> FrozenCLIP:
    return random_clip(request.param)


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return random_clip("vit")


@pytest.fixture(scope="module")
def exact_clip() -> FrozenCLIP:
    return random_clip("vit", torch.float64)


@torch.no_grad()
def ensemble_by_hand(model, tokenizer, names: list[str], templates: list[str]) -> torch.Tensor:
    weights = []
    for name in names:
        texts = tokenizer([template.format(name.replace("_", " ")) for template in templates])
        features = model.encode_text(texts)
        features = features / features.norm(dim=-1, keepdim=True)
        mean = features.mean(dim=0)
        weights.append(mean / mean.norm())
    return torch.stack(weights)


ENSEMBLES = {
    "80": (80, [fill("{}") for fill in OPENAI_IMAGENET_TEMPLATES]),
    "7": (7, [fill("{}") for fill in SIMPLE_IMAGENET_TEMPLATES]),
    "own": (["a {}.", "{}", "two {}s"], ["a {}.", "{}", "two {}s"]),
}


@pytest.mark.parametrize("which", ENSEMBLES)
def test_ensemble_equals_plain_open_clip(family, which):
    option, templates = ENSEMBLES[which]
    ours = ZeroShotEnsemble(family, NAMES, templates=option)()
    assert len(templates) == int(which if which.isdecimal() else 3)
    assert (ours - ensemble_by_hand(family.model, family.tokenizer, NAMES, templates)).abs().max() < 1e-6
    assert (ours - ZeroShot(family, NAMES, template=TEMPLATE)()).abs().max() > 1e-3


@pytest.mark.parametrize("template", [TEMPLATE, "{}"])
def test_zero_shot_is_an_ensemble_of_one(family, template):
    ours = ZeroShot(family, NAMES, template=template)()
    by_hand = ensemble_by_hand(family.model, family.tokenizer, NAMES, [template])
    assert (ours - by_hand).abs().max() < 1e-6


def blobs(
    per_class: list[int], width: int = 24, noise: float = 0.35, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """L2-normalized points (N, width) around one center per class, and labels (N)."""
    generator = torch.Generator().manual_seed(seed)
    centers = F.normalize(torch.randn(len(per_class), width, generator=torch.Generator().manual_seed(99)), dim=1)
    labels = torch.repeat_interleave(torch.arange(len(per_class)), torch.tensor(per_class))
    return F.normalize(centers[labels] + noise * torch.randn(len(labels), width, generator=generator), dim=1), labels


def labeled(train, val):
    """What a data module gives to `prepare` and `select`."""
    parts = {part: (x if x.dim() == 3 else x[None], y) for part, (x, y) in {"train": train, "val": val}.items()}
    return parts.__getitem__


NOTHING = (torch.empty(0, 0), torch.empty(0, dtype=torch.long))


def sklearn_by_hand(train, val) -> tuple[float, LogisticRegression]:
    """The search of CoOp's linear probe, without ours."""

    def fit(C):
        return LogisticRegression(solver="lbfgs", max_iter=1000, C=C).fit(train[0].double().numpy(), train[1].numpy())

    def accuracy(C):
        return fit(C).score(val[0].double().numpy(), val[1].numpy())

    coarse = [accuracy(C) for C in (1e6, 1e4, 1e2, 1, 1e-2, 1e-4, 1e-6)]
    peak = [6, 4, 2, 0, -2, -4, -6][coarse.index(max(coarse))]
    low, high = peak - 1, peak + 1
    for _ in range(8):
        right_wins = accuracy(10.0**low) < accuracy(10.0**high)
        C = 10.0**high if right_wins else 10.0**low
        low, high = ((low + high) / 2, high) if right_wins else (low, (low + high) / 2)
    return C, fit(C)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("noise", [0.2, 0.5])
@pytest.mark.parametrize("classes", [2, 3])
def test_linear_probe_equals_scikit_learn(clip, classes, noise):
    train, val = blobs([8] * classes, noise=noise, seed=1), blobs([12] * classes, noise=noise, seed=2)
    test, _ = blobs([40] * classes, noise=noise, seed=3)
    probe = LinearProbe(clip, NAMES[:classes])
    probe.prepare(labeled(train, val))
    C, by_hand = sklearn_by_hand(train, val)
    assert probe.chosen == {"C": C}
    ours = probe.logits(test).double().softmax(dim=1)
    assert torch.allclose(ours, torch.tensor(by_hand.predict_proba(test.double().numpy())), atol=1e-5)
    assert probe.trainable_params == classes * 24 + classes


def test_linear_probe_with_a_given_C(clip):
    train, _ = blobs([4, 4, 4])
    probe = LinearProbe(clip, NAMES, C=0.316)
    probe.prepare(labeled(blobs([4, 4, 4]), NOTHING))
    by_hand = LogisticRegression(C=0.316, max_iter=1000).fit(train.double().numpy(), blobs([4, 4, 4])[1].numpy())
    assert torch.allclose(probe.weight.double(), torch.tensor(by_hand.coef_), atol=1e-6)
    assert torch.allclose(probe.bias.double(), torch.tensor(by_hand.intercept_), atol=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_linear_probe_holds_images_out_where_there_is_no_validation_set(clip):
    features, labels = blobs([8, 5, 2], noise=0.5)
    probe = LinearProbe(clip, NAMES)
    probe.prepare(labeled((features, labels), NOTHING))
    held_out = torch.zeros(15, dtype=torch.bool)
    held_out[[6, 7, 12, 14]] = True  # a quarter of 8, 5 and 2 images, at least one
    C, _ = sklearn_by_hand((features[~held_out], labels[~held_out]), (features[held_out], labels[held_out]))
    assert probe.chosen == {"C": C}
    by_hand = LogisticRegression(C=C, max_iter=1000).fit(features.double().numpy(), labels.numpy())
    assert torch.allclose(probe.weight.double(), torch.tensor(by_hand.coef_), atol=1e-5)


def test_linear_probe_never_predicts_a_class_without_images(clip):
    features, labels = blobs([6, 0, 6])
    probe = LinearProbe(clip, NAMES, C=1.0)
    probe.prepare(labeled((features, labels), NOTHING))
    predicted = probe.logits(blobs([20, 20, 20], seed=5)[0]).argmax(dim=1)
    assert set(predicted.tolist()) == {0, 2}
    assert (probe.logits(features).argmax(dim=1) == labels).all()


@pytest.mark.parametrize(
    ("per_class", "message"), [([1, 1, 1], "none can be held out"), ([6, 0, 0], "at least two classes")]
)
def test_linear_probe_without_anything_to_choose_on(clip, per_class, message):
    with pytest.raises(CoopError, match=message):
        LinearProbe(clip, NAMES).prepare(labeled(blobs(per_class), NOTHING))


def test_linear_probe_takes_every_view_as_a_sample(clip):
    first, second = blobs([3, 3, 3], seed=1), blobs([3, 3, 3], seed=2)
    probe = LinearProbe(clip, NAMES, C=1.0)
    probe.prepare(labeled((torch.stack([first[0], second[0]]), first[1]), NOTHING))
    both = torch.cat([first[0], second[0]]).double().numpy()
    by_hand = LogisticRegression(C=1.0, max_iter=1000).fit(both, torch.cat([first[1], second[1]]).numpy())
    assert torch.allclose(probe.weight.double(), torch.tensor(by_hand.coef_), atol=1e-5)


def unit(*values: float) -> list[float]:
    return [*values, *[0.0] * (24 - len(values))]


def test_tip_adapter_on_three_points(clip):
    """Keys (1, 0), (0, 1), (-1, 0) of the classes 0, 1, 1; alpha = 2, beta = 3; third class without a key."""
    tip = TipAdapter(clip, NAMES, templates=[TEMPLATE], alpha=2.0, beta=3.0)
    keys = torch.tensor([unit(1.0), unit(0.0, 1.0), unit(-1.0)])
    tip.prepare(labeled((keys, torch.tensor([0, 1, 1])), NOTHING))
    points = torch.tensor([unit(1.0), unit(0.0, -1.0), unit(0.6, 0.8)])
    # 2 * exp(-3 * (1 - cosine)), with cosines (1, 0, -1), (0, -1, 0) and (0.6, 0.8, -0.6)
    expected = torch.tensor(
        [
            [2.0, 2 * math.exp(-3.0) + 2 * math.exp(-6.0), 0.0],
            [2 * math.exp(-3.0), 2 * math.exp(-6.0) + 2 * math.exp(-3.0), 0.0],
            [2 * math.exp(-1.2), 2 * math.exp(-0.6) + 2 * math.exp(-4.8), 0.0],
        ]
    )
    assert expected[2].tolist() == pytest.approx([0.6023884, 1.1140827, 0.0], abs=1e-6)
    zero_shot = ZeroShot(clip, NAMES, template=TEMPLATE).logits(points)
    assert torch.allclose(tip.logits(points), zero_shot + expected, atol=1e-5)


def test_tip_adapter_searches_alpha_and_beta_on_validation_data(clip):
    train, val = blobs([4, 4, 4], noise=0.4, seed=1), blobs([15, 15, 15], noise=0.4, seed=2)
    tip = TipAdapter(clip, NAMES, templates=[TEMPLATE], alpha_max=5.0, beta_max=12.0)
    tip.prepare(labeled(train, val))
    tip.select(labeled(train, val))
    zero_shot = ZeroShot(clip, NAMES, template=TEMPLATE).logits(val[0])
    correct = {}
    for i in range(200):
        for j in range(20):
            beta, alpha = 0.1 + i * 11.9 / 200, 0.1 + j * 4.9 / 20
            affinity = torch.exp(-beta * (1 - val[0] @ train[0].T))
            votes = torch.stack([affinity[:, train[1] == label].sum(dim=1) for label in range(3)], dim=1)
            correct[beta, alpha] = int(((zero_shot + alpha * votes).argmax(dim=1) == val[1]).sum())
    best = max(correct.values())
    beta, alpha = next(key for key, value in correct.items() if value == best)
    assert tip.chosen == pytest.approx({"alpha": alpha, "beta": beta})
    assert int((tip.logits(val[0]).argmax(dim=1) == val[1]).sum()) == best > min(correct.values())


def test_tip_adapter_averages_views(clip):
    views = torch.stack([blobs([2, 2, 2], seed=seed)[0] for seed in (1, 2, 3)])
    tip = TipAdapter(clip, NAMES, templates=[TEMPLATE])
    tip.prepare(labeled((views, torch.tensor([0, 0, 1, 1, 2, 2])), NOTHING))
    mean = (views[0] + views[1] + views[2]) / 3
    assert torch.allclose(tip.keys, mean / mean.norm(dim=1, keepdim=True), atol=1e-6)


def assert_gradient(method, batch, labels):
    """Autograd's gradient of the loss against central differences, along random directions of all parameters."""

    def loss():
        features = method.encode_image(batch) if batch.dim() == 4 else batch
        return method.loss(Batch(labels, features))[0]

    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True, materialize_grads=True)
    # The pooled output of some towers leaves a parameter or two out.
    assert sum(gradient.abs().max() == 0 for gradient in gradients) <= 1 + len(gradients) // 20
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) * 1e-6 for p in parameters]
        analytic = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
        with torch.no_grad():
            torch._foreach_add_(parameters, direction)
            above = loss().item()
            torch._foreach_sub_(parameters, direction, alpha=2)
            below = loss().item()
            torch._foreach_add_(parameters, direction)
        assert (above - below) / 2 == pytest.approx(analytic, rel=1e-5, abs=1e-13)


FINE_TUNED = {
    "text_linear": (TextLinear, {}, 24 * 24),
    "text_bias": (TextBias, {}, 24),
    "text_bias_per_class": (TextBias, {"class_specific": True}, 3 * 24),
    "clip_adapter": (ClipAdapter, {"ratio": 0.2}, 2 * 24 * 6),
    "clip_adapter_searched": (ClipAdapter, {}, len(RATIOS) * 2 * 24 * 6),
    "tip_adapter_f": (TipAdapter, {"train_keys": True, "templates": [TEMPLATE]}, 9 * 24),
    "clap": (CLAP, {"templates": [TEMPLATE, "a {}."]}, 3 * 24),
    "clap_cosine": (CLAP, {"templates": [TEMPLATE], "constraint": "cosine"}, 3 * 24),
    "clap_random": (CLAP, {"templates": [TEMPLATE], "init": "random"}, 3 * 24),
}


@pytest.fixture(params=FINE_TUNED)
def fine_tuned(request, exact_clip):
    kind, options, params = FINE_TUNED[request.param]
    torch.manual_seed(3)
    options = options if "templates" in options else options | {"template": TEMPLATE}
    method = kind(exact_clip, NAMES, **options).double()
    train = blobs([3, 3, 3], seed=4)
    method.prepare(labeled(train, NOTHING))
    assert method.trainable_params == params
    return method


def test_first_gradients_equal_finite_differences(fine_tuned):
    features, labels = blobs([3, 3, 3], seed=6)
    assert_gradient(fine_tuned.train(), features.double(), labels)


@pytest.mark.parametrize("name", FAMILIES)
def test_image_encoder_gradients_equal_finite_differences(name):
    clip = random_clip(name, torch.float64)
    method = ImageEncoder(clip, NAMES, template=TEMPLATE)
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    start = method.eval().encode_image(images)
    assert torch.allclose(start, clip.encode_image(images), atol=1e-12)
    assert method.trainable_params == sum(parameter.numel() for parameter in clip.model.visual.parameters())
    assert_gradient(method.train(), images, torch.tensor([0, 1, 2, 0, 1, 2]))
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in clip.parameters())


def test_fine_tuning_starts_as_zero_shot(exact_clip):
    features, _ = blobs([5, 5, 5])
    zero_shot = ZeroShot(exact_clip, NAMES, template=TEMPLATE).logits(features.double())
    for kind, options in ((TextLinear, {}), (TextBias, {}), (TextBias, {"class_specific": True})):
        method = kind(exact_clip, NAMES, template=TEMPLATE, **options).double()
        assert torch.allclose(method.logits(features.double()), zero_shot, atol=1e-12)


def test_clip_adapter_equals_its_formula(exact_clip):
    adapter = ClipAdapter(exact_clip, NAMES, template=TEMPLATE, ratio=0.3).double()
    (down,), (up,) = adapter.down, adapter.up
    text = ZeroShot(exact_clip, NAMES, template=TEMPLATE)()
    scale = exact_clip.logit_scale.exp()
    for x in blobs([2, 2, 2])[0].double():
        raw = 7.5 * x  # the authors adapt features before they are normalized
        adapted = torch.relu(up @ torch.relu(down @ raw))
        blended = 0.3 * adapted + 0.7 * raw
        expected = scale * text @ (blended / blended.norm())
        assert torch.allclose(adapter.logits(x[None])[0], expected, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_each_ratio_trains_as_if_it_were_alone(exact_clip, optimizer):
    options = {"name": optimizer, "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "eps": 1e-8}
    features, labels = blobs([6, 6, 6], seed=8)
    features = features.double()

    def trained(ratio):
        torch.manual_seed(5)
        method = ClipAdapter(exact_clip, NAMES, template=TEMPLATE, ratio=ratio).double().train()
        optimizer = build_optimizer(list(method.parameters()), options)
        for _ in range(6):
            optimizer.zero_grad()
            method.loss(features, labels)[0].backward()
            optimizer.step()
        return method

    together = trained(None)
    for index, ratio in enumerate(RATIOS):
        alone = trained(ratio)
        assert torch.allclose(together.down[index], alone.down[0], atol=1e-10)
        assert torch.allclose(together.up[index], alone.up[0], atol=1e-10)

    val = blobs([20, 20, 20], noise=0.6, seed=9)
    correct = [int((trained(r).logits(val[0].double()).argmax(dim=1) == val[1]).sum()) for r in RATIOS]
    together.select(labeled(NOTHING, (val[0].double(), val[1])))
    assert together.chosen == {"ratio": RATIOS[correct.index(max(correct))]}
    assert together.trainable_params == 2 * 24 * 6
    assert int((together.logits(val[0].double()).argmax(dim=1) == val[1]).sum()) == max(correct)
