"""What the methods with prompts in the image tower have in common: images in every step."""

from collections.abc import Mapping

from torch import nn

from coop.methods import Method
from coop.methods.base import Batch
from reference_checks.common import (
    clip,
    close,
    close_gradient,
    close_tensor,
    dassl,
    images,
    labels,
    start,
    train,
)  # fmt: skip


def image_names(method: Method) -> dict[str, nn.Parameter]:
    """The image prompts by their authors' names."""
    names = ["image_encoder.VPT"]
    names += [f"image_encoder.transformer.resblocks.{layer}.VPT_shallow" for layer in range(1, 99)]
    return dict(zip(names, method.image_prompts, strict=False))


def batches(method: Method, count: int = 24, size: int = 8):
    """Batches of images, with the frozen CLIP's features where the method has a teacher."""
    for part, label in zip(images(count).split(size), labels(count).split(size), strict=True):
        teacher = {"image_features": clip().encode_image(part)} if method.needs_teacher else {}
        yield {"image": part, "label": label, **teacher}


def check_tower_method(
    method: Method, learned: Mapping[str, nn.Parameter], content: Mapping, variant: Mapping, folder
) -> None:
    """Start and training; learned tensors by their authors' names."""
    settings, at_start, training = variant["settings"], variant["start"], variant["training"]
    start(variant["learned"], learned)
    first = images(24)[:8]
    features = method.encode_image(first)
    close(method(), at_start["text_features"], 1e-5, what="text features")
    close(features[:4], at_start["image_features_first4"], 1e-5, what="image features")
    close(method.logits(features)[:4], at_start["logits_first4"], 1e-4, what="logits")
    teacher = clip().encode_image(first) if method.needs_teacher else None
    loss, _ = method.loss(Batch(labels()[:8], features, first, teacher))
    method.backward(loss)
    close(loss, at_start["loss"], 1e-5, what="loss")
    for name, tensor in learned.items():
        close_gradient(tensor.grad, at_start["gradient"][name], what=name)
    method.zero_grad()

    epochs = len(training["lr"])
    trace = train(method, lambda _: batches(method), epochs, dassl(settings), folder)
    close(trace.losses, training["losses"], 1e-4, what="losses")
    close(trace.rates[::3], training["lr"], 1e-9, what="learning rates")
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    for name, tensor in learned.items():
        last = trace.after_epochs[-1][names[id(tensor)]]
        close_tensor(last, training["final"][name], 1e-5, 1e-4, name)
    if not method.needs_teacher:  # PromptSRC tests an average of the prompts
        final = method.logits(method.encode_image(first[:4]))
        close(final, training["final_logits_first4"], 1e-4, what="final logits")
