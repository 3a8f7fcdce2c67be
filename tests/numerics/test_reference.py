"""Our figures against those of the CoOp authors' code."""

import pytest
import pytorch_lightning as pl
import small_clip as small
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from coop import PromptLearner, learning_rate
from coop.methods.zero_shot import ZeroShot
from coop.training.module import LitClassifier

CASES = [f"M4_{context}_{position}" for context in ("unified", "csc") for position in ("end", "middle", "front")]
OPTIMIZER = {"lr": 0.002, "momentum": 0.9, "weight_decay": 5e-4, "warmup_epochs": 1, "warmup_lr": 1e-5}


@pytest.fixture(params=CASES)
def case(request, reference, small_clip):
    """A learner from the reference's start, and the reference's figures for it."""
    _, context, position = request.param.split("_")
    names = reference["classnames"]
    learner = PromptLearner(small_clip, names, n_ctx=4, class_specific=context == "csc", class_token_position=position)
    with torch.no_grad():
        learner.ctx.copy_(small.initial_context(len(names), 4, context == "csc"))
    return learner, reference["cases"][request.param]


def features_and_labels():
    return small.image_features(), torch.arange(48) % 16


def test_text_features(case):
    learner, expected = case
    assert (learner() - torch.tensor(expected["text_features"])).abs().max() < 1e-5


def test_loss_logits_and_first_gradient(case):
    learner, expected = case
    images, labels = features_and_labels()
    logits = learner.logits(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    assert torch.allclose(logits[0], torch.tensor(expected["logits_row0"]), atol=1e-4)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert learner.ctx.grad.norm().item() == pytest.approx(expected["grad_norm"], rel=1e-5)
    first = torch.tensor(expected["grad_flat_first16"])
    assert (learner.ctx.grad.flatten()[:16] - first).norm() < 1e-5 * first.norm()


def test_nothing_but_ctx_receives_a_gradient(case):
    learner, _ = case
    images, labels = features_and_labels()
    F.cross_entropy(learner.logits(images), labels).backward()
    assert [name for name, _ in learner.named_parameters()] == ["ctx"]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in learner.clip.parameters())
    expected = (16 if learner.class_specific else 1) * 4 * 128
    assert learner.trainable_params == expected


class RecordLosses(pl.Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.losses.append(outputs["loss"].item())


def test_eighteen_training_losses_through_lightning(case, tmp_path):
    learner, expected = case
    images, labels = features_and_labels()
    batches = [{"image_features": x, "label": y} for x, y in zip(images.split(16), labels.split(16), strict=True)]
    record = RecordLosses()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=6, logger=False, callbacks=[record], enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    model = LitClassifier(learner, OPTIMIZER, epochs=6)
    trainer.fit(model, DataLoader(batches, batch_size=None))
    assert record.losses == pytest.approx(expected["losses"], abs=1e-4)
    assert learner.ctx.norm().item() == pytest.approx(expected["ctx_final_norm"], rel=1e-4)
    assert torch.allclose(learner.ctx.flatten()[:16], torch.tensor(expected["ctx_final_first16"]), atol=1e-5)


def test_learning_rates(reference):
    for epoch, expected in enumerate(reference["lr"]["50"]):
        assert learning_rate(epoch, 50) == pytest.approx(expected, abs=1e-12)


def test_context_from_words_is_zero_shot(reference, small_clip):
    names = reference["classnames"]
    learner = PromptLearner(small_clip, names, ctx_init="a photo of a")
    assert learner.n_ctx == 4
    expected = torch.tensor(reference["ctx_init_a_photo_of_a"]["text_features"])
    assert (learner() - expected).abs().max() < 1e-5
    zero_shot = ZeroShot(small_clip, names, template="a photo of a {}.")
    assert (learner() - zero_shot()).abs().max() < 1e-6
