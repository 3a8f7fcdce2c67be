"""Models trained side by side are what each would be alone; the first best is kept."""

import pytest
import torch
import torch.nn.functional as F

from coop import CoopError
from coop.optim.grid import Grid, by_each, of_kinds
from coop.optim.schedule import linear_warmup

STEPS = 30


def scores(x, weight, bias):
    return torch.einsum("be,ske->bsk", x[0], weight) + bias


def of(samples):
    """As the grid takes them."""
    return of_kinds(samples[:1]), samples[1]


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 5, generator=generator), torch.arange(40) % 3


@pytest.fixture
def start():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 5, generator=generator), torch.zeros(3)]


def alone(start, samples, rows, lr: float, decay: float) -> list[list[torch.Tensor]]:
    """One setting with torch's own AdamW: the parameters after each step."""
    parameters = [tensor.clone().requires_grad_() for tensor in start]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)
    after = []
    for batch, rate in zip(rows, linear_warmup(STEPS, lr, 4), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(samples[0][batch] @ parameters[0].T + parameters[1], samples[1][batch]).backward()
        optimizer.step()
        after.append([parameter.detach().clone() for parameter in parameters])
    return after


def test_each_model_is_what_torchs_adamw_makes_of_it_alone(start, samples):
    grid = Grid([0.1, 0.01], [0.0, 0.5], [8], STEPS, warmup=4)
    rows = grid.batches(40)[8]
    *_, (_, models) = grid.descend(start, scores, of(samples), rows)
    for s, (lr, decay) in enumerate([(0.1, 0.0), (0.1, 0.5), (0.01, 0.0), (0.01, 0.5)]):
        for ours, theirs in zip(models, alone(start, samples, rows, lr, decay)[-1], strict=True):
            assert torch.allclose(ours[s], theirs, atol=1e-6), (lr, decay)
    assert (models[0][0] - models[0][1]).abs().max() > 0.1, "the weight decay counts"


def test_the_first_best_setting_and_step_are_kept(start, samples):
    grid = Grid([0.1, 0.01], [0.0, 0.5], [8, 16], STEPS, warmup=4, interval=3)
    rows = grid.batches(40)
    val = torch.randn(25, 5, generator=torch.Generator().manual_seed(2)), torch.arange(25) % 3
    found = []
    for lr in (0.1, 0.01):
        for decay in (0.0, 0.5):
            for size in (8, 16):
                for t, (weight, bias) in enumerate(alone(start, samples, rows[size], lr, decay)):
                    if t % 3 == 0:
                        correct = ((val[0] @ weight.T + bias).argmax(dim=1) == val[1]).sum().item()
                        setting = {"lr": lr, "weight_decay": decay, "batch_size": size, "iteration": t}
                        found.append((correct, setting, weight))
    correct, setting, weight = max(found, key=lambda entry: entry[0])  # the first of equal ones
    assert correct > min(entry[0] for entry in found)
    assert grid.fit(start, scores, of(samples), rows, ([val[0]], val[1])) == setting
    assert torch.allclose(start[0], weight, atol=1e-6)


def test_without_validation_images_the_last_step_is_kept(start, samples):
    grid = Grid([0.1], [0.5], [8], STEPS, warmup=4)
    rows, nothing = grid.batches(40), ([torch.empty(0, 0)], torch.empty(0, dtype=torch.long))
    expected = alone(start, samples, rows[8], 0.1, 0.5)[-1][0]
    assert grid.fit(start, scores, of(samples), rows, nothing) == {}
    assert torch.allclose(start[0], expected, atol=1e-6)


def test_several_settings_need_validation_images(start, samples):
    grid, nothing = Grid([0.1], [0.5], [8, 16], STEPS), ([torch.empty(0, 0)], torch.empty(0, dtype=torch.long))
    with pytest.raises(CoopError, match=r"no validation images: nothing to choose among method.batch_size=\[8, 16\]"):
        grid.fit(start, scores, of(samples), grid.batches(40), nothing)


def test_batches_are_passes_over_each_kind_of_samples():
    rows = Grid([0.1], [0.0], [6, 8], 20).batches(10, 7)
    assert {size: tuple(each.shape) for size, each in rows.items()} == {6: (20, 6), 8: (20, 8)}
    images, texts = rows[6][:, :3], rows[6][:, 3:]
    assert (images < 10).all()
    assert (texts >= 10).all()
    for kind, whole in ((images, 3), (texts, 2)):
        passes = kind[: 20 // whole * whole].reshape(-1, whole * 3)
        assert all(len(set(each.tolist())) == whole * 3 for each in passes), "none twice within a pass"
    assert len(set(texts.flatten().tolist())) == 7


@pytest.mark.parametrize(("counts", "sizes"), [((10, 5), [8]), ((10, 4), [8]), ((10, 17), [8, 16]), ((2, 9), [4])])
def test_sizes_that_are_too_large_for_the_samples_are_left_out(counts, sizes):
    """A part has to be below what there is; where none is, all that there is, once."""
    rows = Grid([0.1], [0.0], [8, 16], 5).batches(*counts)
    assert list(rows) == sizes


@pytest.mark.parametrize("x", [torch.arange(8.0).view(2, 4), torch.arange(24.0).view(3, 2, 4)])
def test_features_by_each_models_weights(x):
    """The gradient lies in memory as the weights do: any other way makes AdamW's first pass over it ten times slower."""
    weights = torch.arange(60.0).view(3, 5, 4).requires_grad_()
    found = by_each(x, weights)
    assert torch.equal(found, x @ weights.mT)
    (gradient,) = torch.autograd.grad(found.square().sum(), weights)
    assert gradient.stride() == weights.stride()
