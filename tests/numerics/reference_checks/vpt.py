"""VPT."""

import re

from coop.methods.vpt import VPT
from reference_checks.common import CLASSNAMES, clip
from reference_checks.towers import check_tower_method, image_names


def check(content, variant, folder):
    settings = variant["settings"]
    template = re.search(r'"(.*)"', settings["text"])[1]
    method = VPT(
        clip(), CLASSNAMES, template=template,
        n_ctx_vision=settings["n_ctx_vision"], depth_vision=settings["depth_vision"],
    )  # fmt: skip
    check_tower_method(method, image_names(method), content, variant, folder)
