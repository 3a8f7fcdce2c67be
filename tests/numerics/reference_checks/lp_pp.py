"""LP++."""

import small_vit_clip as small
import torch

from coop.methods.lp_pp import LPpp
from reference_checks.common import CLASSNAMES, clip, close, close_tensor, images, labels

NAMES = {"classifier.weight": "weight", "classifier.bias": "bias", "alpha_vec": "alpha"}


def check(content, variant, folder):
    settings, at_start, training = variant["settings"], variant["start"], variant["training"]
    count = settings["n_train"]
    f, y = clip().encode_image(images(count)), labels(count)
    assert settings["shots"] * 12 == count
    val_f, val_y = clip().encode_image(small.drawn("val", (24, 3, 48, 48), 1.0)), labels()
    method = LPpp(clip(), CLASSNAMES, templates=settings["templates"], iterations=settings["epochs"])
    start = variant["learned"]["classifier.bias"]
    drawn = start["start"] == "drawn"
    bias = small.drawn(start["key"], tuple(start["shape"]), start["std"]) if drawn else torch.zeros(start["shape"])
    method.bias = bias.clone()

    losses, alphas, scores = [], [], []
    for iteration, loss in enumerate(method.descend(f, y)):
        if iteration == 0:
            begin(method, f, y, bias, at_start)
        losses.append(loss.item())
        alphas.append(method.alpha.mean().item())
        scores.append(100 * (method.logits(val_f).argmax(dim=1) == val_y).float().mean().item())
    close(losses, training["losses"], 1e-5, what="losses")
    close(alphas[:-1], training["alpha_mean_before_step"][1:], rtol=1e-5, what="alpha")
    close(scores, training["val_accuracy"], 1e-4, what="validation accuracy")
    close(method.alpha, training["alpha_final"], rtol=1e-5, what="final alpha")
    for theirs, ours in NAMES.items():
        final = training["final"][theirs]
        close_tensor(getattr(method, ours), final, 1e-5 * final["norm"] / 10, 1e-5, theirs)
    close(method.logits(f)[:4], training["final_logits_first4"], rtol=1e-5, what="final logits")

    again = LPpp(clip(), CLASSNAMES, templates=settings["templates"], iterations=settings["epochs"])
    again.bias = bias.clone()
    again.prepare({"train": (f[None], y), "val": (val_f[None], val_y)}.__getitem__)
    assert again.chosen == {"iteration": training["chosen_epoch"]}
    close(again.logits(val_f).argmax(dim=1).eq(val_y).float().mean() * 100, max(scores), 1e-4, what="the best")


def begin(method: LPpp, f: torch.Tensor, y: torch.Tensor, bias: torch.Tensor, at_start: dict) -> None:
    """The start from the file's own numbers, and the first step from it: rates and gradients in one."""
    one_hot = torch.nn.functional.one_hot(y, 12).float()
    weight, similarity = one_hot.T @ f, f @ method.prompts().T
    close_tensor(weight, at_start["start_weight"], 1e-6, 1e-5, "start")
    logits = f @ weight.T + bias + at_start["init_alpha"] * similarity
    close(logits[:4], at_start["logits_first4"], rtol=1e-5, what="logits")
    close(torch.nn.functional.cross_entropy(logits, y), at_start["loss"], 1e-5, what="loss")
    close(method.alpha, [at_start["init_alpha"]] * 12, rtol=1e-6, what="alpha at the start")
    for name, ours in (("classifier.weight", weight - method.weight), ("classifier.bias", bias - method.bias)):
        theirs = at_start["gradient"][name]
        close(ours.norm() / at_start["lr_w"], theirs["norm"], rtol=1e-4, what=f"gradient of {name}")
        close(ours.flatten()[:16] / at_start["lr_w"], theirs["first16"], rtol=1e-4, what=f"gradient of {name}")
