"""CLIP's own lists of prompt templates."""

from coop.errors import CoopError


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


def check_templates(key: str, templates: list) -> None:
    """Raises CoopError, naming `key`, for an empty list or a template that `check_template` refuses."""
    if not templates:
        raise CoopError(f"{key}=[]: must not be empty; give templates such as 'a photo of a {{}}.'")
    for template in templates:
        check_template(key, template)


def check_template(key: str, template: str) -> None:
    """Raises CoopError, naming `key`, unless there is one place for the class name and no other brace."""
    if not isinstance(template, str) or template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
        raise CoopError(f"{key}={template}: needs one {{}} where the class name goes, and no other braces")
