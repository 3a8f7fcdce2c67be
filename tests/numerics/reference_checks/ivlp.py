"""IVLP, and the language alone."""

from torch import nn

from coop.methods import Method
from coop.methods.ivlp import IVLP
from reference_checks.common import CLASSNAMES, clip
from reference_checks.towers import check_tower_method


def names(method: Method) -> dict[str, nn.Parameter]:
    """Learned tensors by their authors' names."""
    found = {"prompt_learner.ctx": method.ctx}
    for tower, prompts, first in (("text", method.deep.text, 1), ("image", method.deep.image, 0)):
        for layer, parameter in enumerate(prompts, start=first):
            found[f"{tower}_encoder.transformer.resblocks.{layer}.VPT_shallow"] = parameter
    if len(method.deep.image):
        found["image_encoder.VPT"] = found.pop("image_encoder.transformer.resblocks.0.VPT_shallow")
    return found


def options(settings) -> dict:
    return {
        "n_ctx": settings["n_ctx_text"],
        "ctx_init": settings["ctx_init"] if settings["ctx_from_words"] else None,
        "depth_text": settings["depth_text"],
        "n_ctx_vision": max(1, settings["n_ctx_vision"]),
        "depth_vision": settings["depth_vision"],
    }


def check(content, variant, folder):
    method = IVLP(clip(), CLASSNAMES, **options(variant["settings"]))
    check_tower_method(method, names(method), content, variant, folder)
