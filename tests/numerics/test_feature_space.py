"""Methods on frozen features against formulas written out: what the authors' figures do not vary."""

import pytest
import torch
import torch.nn.functional as F

from coop.methods.base import Batch
from coop.methods.clap import CLAP
from coop.methods.cross_modal import CrossModal
from coop.methods.linear_probe import LinearProbe
from coop.methods.lp_pp import LPpp

NAMES = ["dog", "sea_horse", "grand piano"]
TEMPLATES = ["a photo of a {}.", "a {}."]


def blobs(seed: int, per_class: int = 4, noise: float = 0.8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(per_class)
    return F.normalize(torch.eye(64)[labels] + noise * torch.randn(len(labels), 64, generator=generator), dim=1), labels


def labeled(train, val):
    parts = {"train": (train[0] if train[0].ndim == 3 else train[0][None], train[1]), "val": (val[0][None], val[1])}
    return parts.__getitem__


NOTHING = (torch.empty(0, 0), torch.empty(0, dtype=torch.long))


def sure(method: CLAP, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean zero-shot probability of each class on its images, image for image."""
    scale, found = method.clip.logit_scale.exp(), [[], [], []]
    for view in features:
        for x, label in zip(view, labels.tolist(), strict=True):
            logits = torch.stack([scale * F.cosine_similarity(x, t, dim=0) for t in method.base()])
            found[label].append(logits.softmax(dim=0)[label])
    return torch.stack([torch.stack(each).mean() for each in found])


@pytest.mark.parametrize("multipliers", ["zero_shot", "balanced", "corrected", "constant"])
def test_claps_multipliers(small_clip, multipliers):
    features, labels = torch.stack([blobs(1)[0], blobs(2)[0]]), blobs(1)[1]
    method = CLAP(small_clip, NAMES, templates=TEMPLATES, multipliers=multipliers)
    method.prepare(labeled((features, labels), NOTHING))
    own = sure(method, features, labels)
    expected = {
        "zero_shot": own, "balanced": torch.ones(3), "corrected": 3 * own / own.sum(), "constant": own.mean().repeat(3),
    }  # fmt: skip
    assert torch.allclose(method.multipliers, expected[multipliers], rtol=1e-5)
    assert own.std() > 0.001


def test_clap_with_a_class_that_has_no_image(small_clip):
    features, labels = blobs(1)
    method = CLAP(small_clip, NAMES, templates=TEMPLATES)
    method.prepare(labeled((features[labels < 2], labels[labels < 2]), NOTHING))
    assert method.multipliers[2] == 0
    assert (method.multipliers[:2] > 0).all()


@pytest.mark.parametrize("constraint", ["l2", "cosine", "none"])
def test_claps_loss_and_growing_multipliers(small_clip, constraint):
    train = blobs(1)
    method = CLAP(small_clip, NAMES, templates=TEMPLATES, constraint=constraint, adaptive=constraint != "none")
    method.prepare(labeled(train, NOTHING))
    base, lam = method.base(), method.multipliers.clone()
    moved = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    method.prototypes.data = base + 0.5 * moved
    loss, logits = method.loss(Batch(train[1], train[0]))
    squared = (0.5 * moved).square().sum(dim=1)
    distance = {
        "l2": squared, "cosine": 1 - F.cosine_similarity(base + 0.5 * moved, base), "none": torch.zeros(3),
    }[constraint]  # fmt: skip
    expected = F.cross_entropy(logits, train[1]) + sum(lam * distance) / 3
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    method.on_epoch_end(0, 2)
    assert torch.equal(method.multipliers, lam), "the first outer step changes nothing"
    method.prototypes.data = base + moved
    method.on_epoch_end(1, 2)
    if constraint != "none":
        assert torch.allclose(method.multipliers, lam + squared * 4 * squared, rtol=1e-4)


@torch.enable_grad()
def lp_pp_by_autograd(method: LPpp, bias, features, labels, summed: bool) -> list[tuple]:
    """W, b and alpha after each iteration, with torch's optimizer and gradients."""
    t, n = method.prompts(), len(features)
    similarity = features @ t.T
    weight = torch.stack([features[labels == k].sum(dim=0) for k in range(3)]).requires_grad_()
    start = 250 * torch.stack([similarity[labels == k, k].mean() for k in range(3)]).mean()
    bias, alpha = bias.clone().requires_grad_(), start.repeat(3).requires_grad_()
    sgd = torch.optim.SGD(
        [weight, bias], lr=4 * n / torch.linalg.eigvalsh(features.T @ features)[-1].item(), momentum=0.9
    )
    rate, after = n / (4 * similarity.square().sum(dim=0).max()), []
    for iteration in range(1, method.iterations + 1):
        sgd.zero_grad()
        if not summed:
            alpha.grad = None
        F.cross_entropy(features @ weight.T + bias + alpha * similarity, labels).backward()
        sgd.step()
        if iteration % 10 == 0:
            alpha.data -= rate * alpha.grad
        after.append(tuple(x.detach().clone() for x in (weight, bias, alpha)))
    return after


@pytest.mark.parametrize("summed", [True, False])
def test_lp_pp_equals_torchs_own_descent(small_clip, summed):
    features, labels = blobs(1)
    method = LPpp(small_clip, NAMES, templates=TEMPLATES, iterations=35, summed=summed)
    expected = lp_pp_by_autograd(method, method.bias, features, labels, summed)
    method.prepare(labeled((features, labels), NOTHING))
    assert method.chosen == {}
    for ours, theirs in zip((method.weight, method.bias, method.alpha), expected[-1], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max())
    other = lp_pp_by_autograd(method, expected[-1][1] * 0, features, labels, not summed)
    assert (other[-1][2] - expected[-1][2]).abs().max() > 1e-3, "it makes a difference"


def test_lp_pp_keeps_the_latest_of_the_best_iterations(small_clip):
    features, labels = blobs(1)
    val = blobs(2, per_class=7, noise=0.9)
    torch.manual_seed(0)  # the bias is random, and the best iterations have to be several
    method = LPpp(small_clip, NAMES, templates=TEMPLATES, iterations=35)
    after = lp_pp_by_autograd(method, method.bias, features, labels, summed=True)
    scores = [
        ((val[0] @ w.T + b + a * (val[0] @ method.prompts().T)).argmax(dim=1) == val[1]).sum().item()
        for w, b, a in after
    ]
    method.prepare(labeled((features, labels), val))
    best = max(i for i, score in enumerate(scores) if score == max(scores))
    assert scores.count(max(scores)) > 1
    assert max(scores) > min(scores)
    assert method.chosen == {"iteration": best}
    assert torch.allclose(method.weight, after[best][0], atol=1e-3)


GRID = {"lr": [0.01], "weight_decay": [0.1], "batch_size": [4], "iterations": 60, "templates": TEMPLATES}


def test_wise_ft_ends_halfway(small_clip):
    made = {}
    for wiseft in (False, True):
        torch.manual_seed(5)
        method = CrossModal(small_clip, NAMES, wiseft=wiseft, **GRID)
        method.prepare(labeled(blobs(1), NOTHING))
        made[wiseft] = method
    zero_shot = F.normalize(method.prompts.each().mean(dim=0), dim=1)
    assert torch.allclose(made[True].weight, (made[False].weight + zero_shot) / 2, atol=1e-6)
    assert (made[False].weight - zero_shot).abs().max() > 0.01


def test_texts_are_shots_of_their_class(small_clip):
    """Images of the first two classes alone: the third is learned from its texts."""
    features, labels = blobs(1, noise=0.1)
    made = {}
    for texts in (True, False):
        torch.manual_seed(5)
        method = CrossModal(small_clip, NAMES, texts=texts, init="random", **GRID)
        method.prepare(labeled((features[labels < 2], labels[labels < 2]), NOTHING))
        made[texts] = method.logits(F.normalize(method.prompts.each()[0], dim=1)).softmax(dim=1).diagonal()
    assert (made[True] > 0.9).all()
    assert made[False].min() < 0.5


def test_the_adapter_before_the_classifier(small_clip):
    method = CrossModal(small_clip, NAMES, head="adapter", scale=7.0, **GRID)
    method.prepare(labeled(blobs(1), NOTHING))
    x = blobs(3)[0]
    adapted = 0.2 * F.relu(F.relu(x @ method.down.T) @ method.up.T) + 0.8 * x
    assert torch.allclose(method.logits(x), 7.0 * adapted @ method.weight.T, atol=1e-5)
    assert method.trainable_params == 3 * 64 + 2 * 64 * 16


def test_the_linear_probe_on_raw_features(small_clip):
    (features, labels), val = blobs(1), blobs(2)
    fitted = {}
    for normalized in (True, False):
        probe = LinearProbe(small_clip, NAMES, C=1.0, normalized=normalized)
        assert probe.feature_kind == ("normalized" if normalized else "raw")
        probe.prepare(labeled((features if normalized else 10 * features, labels), val))
        fitted[normalized] = probe.weight
    # Ten times as long features, the same penalty: as if C were a hundred times as large.
    probe = LinearProbe(small_clip, NAMES, C=100.0)
    probe.prepare(labeled((features, labels), val))
    assert torch.allclose(10 * fitted[False], probe.weight, rtol=0.02, atol=0.02)
    assert (fitted[True] - probe.weight).abs().max() > 0.1
