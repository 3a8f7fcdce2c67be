"""The baselines against formulas written by hand, scikit-learn called by hand, and finite differences."""

import copy

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from sklearn.linear_model import LogisticRegression

from coop import FrozenCLIP
from coop.lit import build_optimizer
from coop.methods.clip_adapter import RATIOS, ClipAdapter
from coop.methods.image_encoder import ImageEncoder
from coop.methods.linear_probe import LinearProbe
from coop.methods.text_bias import TextBias
from coop.methods.text_linear import TextLinear
from coop.methods.tip_adapter import TipAdapter
from coop.methods.zero_shot import ZeroShot
from coop.methods.zero_shot_ensemble import ZeroShotEnsemble

NAMES = ["dog", "sea_horse", "grand piano"]
TEMPLATE = "a photo of a {}."
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
RESNET = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "patch_size": None}
FAMILIES = {
    "vit": lambda: open_clip.CLIP(24, VIT, TEXT),
    "vit_quickgelu": lambda: open_clip.CLIP(24, VIT, TEXT, quick_gelu=True),
    "resnet": lambda: open_clip.CLIP(24, RESNET, TEXT, quick_gelu=True),
    "custom_text": lambda: open_clip.CustomTextCLIP(24, VIT, TEXT),
    "coca": lambda: open_clip.CoCa(24, {**TEXT, "embed_cls": True, "output_tokens": True},
                                   {**TEXT, "mlp_ratio": 2}, {**VIT, "attentional_pool": True, "output_tokens": True}),
}  # fmt: skip


def random_clip(family: str, dtype: torch.dtype = torch.float32) -> FrozenCLIP:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif "logit_scale" in name:
                parameter.fill_(np.log(10))
    return FrozenCLIP(model.to(dtype), open_clip.SimpleTokenizer(context_length=32), name=family)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> FrozenCLIP:
    return random_clip(request.param)


@torch.no_grad()
def ensemble_by_hand(model, tokenizer, names: list[str], templates: list[str]) -> torch.Tensor:
    weights = []
    for name in names:
        texts = tokenizer([template.format(name.replace("_", " ")) for template in templates])
        features = model.encode_text(texts)
        features = features / features.norm(dim=-1, keepdim=True)
        mean = features.mean(dim=0)
        weights.append(mean / mean.norm())
    return torch.stack(weights)


@pytest.mark.parametrize(
    ("option", "templates"),
    [
        (80, [fill("{}") for fill in OPENAI_IMAGENET_TEMPLATES]),
        (7, [fill("{}") for fill in SIMPLE_IMAGENET_TEMPLATES]),
        (["a {}.", "{}", "many {}s {{}"], ["a {}.", "{}", "many {}s {{{{}}"]),
    ],
    ids=["80", "7", "own"],
)
def test_ensemble_equals_plain_open_clip(family, option, templates):
    if option == 80 and family.name != "vit":
        templates, option = templates[:10], templates[:10]
    if isinstance(option, list) and len(option) == 3:
        option, templates = ["a {}.", "{}", "many {}s"], ["a {}.", "{}", "many {}s"]
    ours = ZeroShotEnsemble(family, NAMES, templates=option)()
    by_hand = ensemble_by_hand(family.model, family.tokenizer, NAMES, templates)
    assert (ours - by_hand).abs().max() < 1e-6
    assert (ours - ZeroShot(family, NAMES, template=TEMPLATE)()).abs().max() > 1e-3
