"""MaPLe."""

from coop.methods.maple import MaPLe
from reference_checks.common import CLASSNAMES, clip
from reference_checks.towers import check_tower_method


def check(content, variant, folder):
    settings = variant["settings"]
    words = settings["ctx_init"] if settings["ctx_from_words"] else None
    backbone = clip(vision_width=settings.get("vision_width", 128))
    method = MaPLe(backbone, CLASSNAMES, n_ctx=settings["n_ctx"], ctx_init=words, depth=settings["depth"])
    names = {"prompt_learner.ctx": method.ctx}
    for k, parameter in enumerate(method.deep.text):
        names[f"prompt_learner.compound_prompts_text.{k}"] = parameter
    for depth, project in enumerate(method.deep.maps):
        name = f"compound_prompt_projections.{depth - 1}" if depth else "proj"
        names |= {f"prompt_learner.{name}.{key}": getattr(project, key) for key in ("weight", "bias")}
    check_tower_method(method, names, content, variant, folder)
