"""The LightningModule: exact gradients, a checkpoint of kilobytes, the schedule that was promised."""

import pickle
from functools import partial

import pytest
import pytorch_lightning as pl
import small_clip as small
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from coop import FrozenCLIP, PromptLearner, learning_rate
from coop.methods.zero_shot import ZeroShot
from coop.training.module import LitClassifier
from coop.training.trainer import checkpoint_interval

OPTIMIZER = {
    "name": "sgd",
    "lr": 0.002,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "eps": 1e-8,
    "warmup_epochs": 1,
    "warmup_lr": 1e-5,
}
NAMES = ["dog", "grey cat", "ox (old)"]


def loader(batch_size: int = 16) -> DataLoader:
    features, labels = small.image_features(), torch.arange(48) % 3
    pairs = zip(features.split(batch_size), labels.split(batch_size), strict=True)
    return DataLoader([{"image_features": x, "label": y} for x, y in pairs], batch_size=None)


def trainer_in(folder, epochs: int, **options) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, **{"enable_checkpointing": False, **options},
    )  # fmt: skip


def learner_at_start(clip: FrozenCLIP, **options) -> PromptLearner:
    torch.manual_seed(0)
    return PromptLearner(clip, NAMES, n_ctx=4, **options)


def loss_of(module: LitClassifier, given: torch.Tensor, key: str = "image_features") -> torch.Tensor:
    """The loss of a training step on 48 images or their features."""
    module.log = lambda *_, **__: None  # there is no trainer to log to
    return module.training_step({key: given, "label": torch.arange(48) % 3}, 0)


@pytest.mark.parametrize("class_specific", [False, True], ids=["unified", "csc"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_gradient_is_that_of_finite_differences(position, class_specific):
    clip = FrozenCLIP(small.small_clip().double(), small.tokenizer())
    learner = learner_at_start(clip, class_token_position=position, class_specific=class_specific)
    loss = partial(loss_of, LitClassifier(learner, OPTIMIZER, epochs=1), small.image_features().double())

    loss().backward()
    generator, step = torch.Generator().manual_seed(1), 2e-7
    for _ in range(4):
        direction = torch.randn(learner.ctx.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            learner.ctx += step * direction
            above = loss()
            learner.ctx -= 2 * step * direction
            below = loss()
            learner.ctx += step * direction
        expected = (above - below).item() / (2 * step)
        assert (learner.ctx.grad * direction).sum().item() == pytest.approx(expected, rel=1e-6)


def test_a_checkpoint_holds_the_method_and_the_optimizer_alone(small_clip, tmp_path):
    learner = learner_at_start(small_clip)
    module = LitClassifier(learner, OPTIMIZER, epochs=2)
    trainer = trainer_in(tmp_path, 2)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert (tmp_path / "x.ckpt").stat().st_size < 100_000
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert list(checkpoint["state_dict"]) == ["method.ctx"]
    assert torch.equal(checkpoint["state_dict"]["method.ctx"], learner.ctx)
    (state,) = checkpoint["optimizer_states"][0]["state"].values()
    assert state["momentum_buffer"].shape == learner.ctx.shape


def test_the_last_epoch_is_always_on_disk():
    assert all(epochs % checkpoint_interval(epochs) == 0 for epochs in range(1, 1001))
    assert [checkpoint_interval(epochs) for epochs in (1, 99, 120, 200, 1000)] == [1, 1, 2, 4, 20]


@pytest.mark.parametrize("broken_at", [1, 3])
def test_resuming_from_a_checkpoint_is_bitwise_the_unbroken_run(small_clip, tmp_path, broken_at):
    def fit(epochs: int, resume=None) -> PromptLearner:
        learner = learner_at_start(small_clip)
        if resume:
            with torch.no_grad():
                learner.ctx.zero_()  # whatever it starts from
        trainer = trainer_in(tmp_path, epochs)
        trainer.fit(LitClassifier(learner, OPTIMIZER, epochs=5), loader(), ckpt_path=resume, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return learner

    unbroken = fit(5)
    fit(broken_at)
    assert torch.equal(fit(5, tmp_path / f"{broken_at}.ckpt").ctx, unbroken.ctx)


class RecordRates(pl.Callback):
    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("options", [{}, {"lr": 0.05, "warmup_epochs": 2, "warmup_lr": 1e-3}, {"warmup_epochs": 0}])
def test_every_step_has_the_learning_rate_of_its_epoch(small_clip, tmp_path, options):
    options = OPTIMIZER | options
    record = RecordRates()
    module = LitClassifier(learner_at_start(small_clip), options, epochs=5)
    trainer_in(tmp_path, 5, callbacks=[record]).fit(module, loader())
    rates = [
        learning_rate(epoch, 5, options["lr"], options["warmup_epochs"], options["warmup_lr"]) for epoch in range(5)
    ]
    assert record.rates == pytest.approx([rate for rate in rates for _ in range(3)], rel=1e-12)


def test_sgd_with_momentum_and_weight_decay_by_hand(small_clip, tmp_path):
    """v = 0.9 v + g + 5e-4 ctx; ctx -= rate v: no dampening, no nesterov."""
    learner = learner_at_start(small_clip)
    by_hand = learner_at_start(small_clip)
    trainer_in(tmp_path, 2).fit(LitClassifier(learner, OPTIMIZER, epochs=2), loader())
    velocity = torch.zeros_like(by_hand.ctx)
    for epoch in range(2):
        for batch in loader():
            (gradient,) = torch.autograd.grad(
                F.cross_entropy(by_hand.logits(batch["image_features"]), batch["label"]), by_hand.ctx
            )
            with torch.no_grad():
                velocity = 0.9 * velocity + gradient + 5e-4 * by_hand.ctx
                by_hand.ctx -= learning_rate(epoch, 2) * velocity
    assert torch.allclose(learner.ctx, by_hand.ctx, atol=1e-6)


def test_nothing_but_the_method_is_trained(small_clip):
    module = LitClassifier(learner_at_start(small_clip), OPTIMIZER, epochs=1)
    (group,) = module.configure_optimizers()["optimizer"].param_groups
    assert [parameter.shape for parameter in group["params"]] == [(4, 128)]
    assert [name for name, parameter in module.named_parameters() if parameter.requires_grad] == ["method.ctx"]


def test_images_and_their_features_give_the_same_loss(small_clip):
    module = LitClassifier(learner_at_start(small_clip), OPTIMIZER, epochs=1)
    images = torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    from_features = loss_of(module, small_clip.encode_image(images))
    assert loss_of(module, images, "image").item() == pytest.approx(from_features.item(), rel=1e-5)


def test_validation_accuracy_is_that_of_the_whole_set(small_clip, tmp_path):
    """Batches of unequal size: the mean over images, not over batches."""
    learner = learner_at_start(small_clip)
    trainer = trainer_in(tmp_path, 1)
    module = LitClassifier(learner, OPTIMIZER, epochs=1)
    trainer.fit(module, loader(), loader(20))
    learner.eval()
    hits = (learner.logits(small.image_features()).argmax(dim=1) == torch.arange(48) % 3).float().mean().item()
    assert trainer.callback_metrics["val/acc"].item() == pytest.approx(hits, abs=1e-6)


def test_a_method_without_parameters_needs_no_optimizer(small_clip):
    module = LitClassifier(ZeroShot(small_clip, NAMES, template="a photo of a {}."), OPTIMIZER, epochs=0)
    assert module.configure_optimizers() is None


@pytest.mark.parametrize("accumulated", [2, 4])
def test_a_checkpoint_never_needs_unpickling(small_clip, tmp_path, accumulated):
    """weights_only=True refuses anything but tensors and plain values; torch's message names what it refused."""
    module = LitClassifier(learner_at_start(small_clip), OPTIMIZER, epochs=2)
    trainer = trainer_in(tmp_path, 1, accumulate_grad_batches=accumulated)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    try:
        torch.load(tmp_path / "x.ckpt", weights_only=True)
    except pickle.UnpicklingError as error:
        pytest.fail(str(error))
