"""PromptSRC."""

from coop.clip.backbone import normalize
from coop.clip.templates import clip_templates
from coop.methods.promptsrc import PromptSRC
from reference_checks.common import CLASSNAMES, clip, close, close_tensor, images
from reference_checks.ivlp import names, options
from reference_checks.towers import check_tower_method


def check(content, variant, folder):
    settings, training = variant["settings"], variant["training"]
    method = PromptSRC(
        clip(), CLASSNAMES, **options(settings), gpa_mean=settings["gpa_mean"], gpa_std=settings["gpa_std"],
        text_weight=settings["text_loss_weight"], image_weight=settings["image_loss_weight"],
        kl_weight=settings["kl_weight"],
    )  # fmt: skip
    assert set(content["teacher_templates"]) == set(clip_templates(80)[:60])
    close(normalize(method.teacher()), content["teacher"]["text_features"], 1e-5, what="teacher")
    learned = names(method)
    check_tower_method(method, learned, content, variant, folder)
    for name, tensor in training["gpa"]["aggregated"].items():
        close_tensor(learned[name], tensor, 1e-5, 1e-4, f"average of {name}")
    method.eval()
    features = method.encode_image(images()[:4])
    close(method.logits(features), training["gpa"]["logits_first4"], 1e-4, what="logits of the average")
