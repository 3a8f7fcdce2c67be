"""CLIP's own lists of prompt templates."""

from typing import Annotated

from coop.errors import CoopError
from coop.system.validation import NOT_EMPTY, Rule


def _has_one_place(template: str) -> bool:
    return template.count("{}") == 1 and not set("{}") & set(template.replace("{}", ""))


#: A prompt with one place for the class name, as the type of an option.
Template = Annotated[str, Rule(_has_one_place, "needs one {} where the class name goes, and no other braces")]
#: One or several of them.
Templates = Annotated[list[Template], NOT_EMPTY]


def clip_templates(number: int) -> list[str]:
    """CLIP's templates for ImageNet, each with one `{}`: all 80, or the 7 that its authors selected.

    Source: Radford et al. 2021, section 3.1.4, as listed in open_clip's metadata.

    Raises:
        CoopError: there is no list of that many.
    """
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    by_number = {80: OPENAI_IMAGENET_TEMPLATES, 7: SIMPLE_IMAGENET_TEMPLATES}
    if number not in by_number:
        raise CoopError(f"templates={number}: CLIP's lists have 80 or 7 templates; a list of your own can be given too")
    return [fill("{}") for fill in by_number[number]]
