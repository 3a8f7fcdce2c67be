"""Photographs and words as features of one CLIP: a backbone's, or a run's with what it learned."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from coop.clip.backbone import FrozenCLIP
from coop.clip.loading import check_source
from coop.config import BackboneConfig, autocast_dtype, build_method, conf_dir
from coop.data.features import FeatureExtractor
from coop.data.images import open_image
from coop.errors import CoopError
from coop.methods import Method
from coop.methods.coop import PromptLearner
from coop.retrieval.options import EncoderOptions
from coop.runs.hub import local_folder
from coop.runs.trained import load_trained
from coop.system.devices import device_of
from coop.system.progress import progress

TEXTS_AT_ONCE = 256
DEFAULT_BACKBONE = "tiny"


class Encoder(NamedTuple):
    """A CLIP on its device, what encodes and keeps photographs, and the run's method and its config where one is given.

    With a run, photographs are encoded as its method does; where that is not the frozen image tower, features are not
    kept.
    """

    clip: FrozenCLIP
    photographs: FeatureExtractor
    method: Method | None = None
    config: DictConfig | None = None


class Photographs(NamedTuple):
    """Photographs by path with their image_features (N, E), or as the method's `feature_kind` says, on the CPU."""

    paths: list[str]
    features: Tensor
    left_out: dict[str, str]  #: by path of what cannot be read, the message
    new: int  #: how many of them were encoded just now


def load_encoder(options: EncoderOptions) -> Encoder:
    """What `run=`, or `backbone=` and `pretrained=`, name.

    Raises:
        CoopError: both are given, or what they name cannot be loaded.
    """
    if options.run is None:
        device = device_of(options.accelerator)
        clip = load_backbone(options.backbone or DEFAULT_BACKBONE, options.pretrained).to(device)
        return Encoder(clip, FeatureExtractor(clip, device, options.num_workers, cached=True))
    if given := options.backbone or options.pretrained:
        raise CoopError(f"{given} beside run={options.run}: a run brings its own backbone; leave out one of them")
    folder = local_folder(options.run)
    method, cfg, _ = load_trained(folder, accelerator=options.accelerator, config_dir=options.config_dir)
    clip, encode = method.clip, method.encode_image if method.needs_images else None
    how = {"cached": encode is None, "encode": encode, "kind": method.feature_kind}
    precision = autocast_dtype(cfg.trainer.precision)
    return Encoder(clip, FeatureExtractor(clip, clip.device, options.num_workers, precision, **how), method, cfg.method)


def load_backbone(name: str, pretrained: str | None) -> FrozenCLIP:
    """A CLIP by the name of a file in conf/backbone, or of an open_clip model (hf-hub: and local-dir: too).

    Raises:
        CoopError: no such model or weights.
    """
    known = {path.stem: path for path in (conf_dir() / "backbone").glob("*.yaml")}
    given = OmegaConf.load(known[name]) if name in known else {"model": name}
    node = OmegaConf.merge(OmegaConf.structured(BackboneConfig), given)
    node.pretrained = pretrained or node.pretrained
    try:
        check_source(node.model, node.pretrained)
    except CoopError as error:  # in the words of coop.train
        said = str(error).replace("backbone.model=", "backbone=").replace("backbone.pretrained=", "pretrained=")
        raise CoopError(f"{said} (configs in conf/backbone: {', '.join(sorted(known))})") from None
    return FrozenCLIP.load(**OmegaConf.to_container(node, resolve=True))


def encode_photographs(extractor: FeatureExtractor, paths: Sequence[str]) -> Photographs:
    """Encode photographs that are new or changed, take the others from the cache, and leave out what cannot be read.

    Raises:
        CoopError: none of them can be read.
    """
    extractor = replace(extractor, skip_unreadable=True, encoded=0)
    features = extractor(paths, None, "photographs")
    readable = features.flatten(1).sum(dim=1).isfinite()
    left_out = {paths[row]: _why(paths[row]) for row in (~readable).nonzero()[:, 0].tolist()}
    if len(left_out) == len(paths):
        raise CoopError(f"none of the {len(paths)} photographs can be read: {left_out[paths[0]]}")
    if left_out:
        paths, features = [path for path in paths if path not in left_out], features[readable]
    return Photographs(list(paths), features, left_out, extractor.encoded - len(left_out))


def _why(path: str) -> str:
    try:
        open_image(path)
    except CoopError as error:
        return str(error)
    return f"{path}: its features are not finite"


@torch.no_grad()
def encode_texts(encoder: Encoder, texts: Sequence[str]) -> tuple[Tensor, int]:
    """text_features (N, E) on the CPU, and how many of the texts were too long and were cut.

    With a run, texts stand where class names do: behind the learned context.

    Raises:
        CoopError: what the run learned is not one context for all classes.
    """
    clip, method, room = encoder.clip, encoder.method, encoder.clip.context_length
    if method is not None:
        check_context(method)
        room -= _tokens_around(method)
    features, cut = [], 0
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    for start in progress(starts, desc="texts", unit="batch", hidden=len(starts) <= 1, leave=False):
        block = list(texts[start : start + TEXTS_AT_ONCE])
        cut += sum(len(ids) > room for ids in clip.token_ids(block))
        if method is None:
            features.append(clip.encode_text(block, cut=True).cpu())
        else:
            names = [shorten(clip, text.rstrip(" ."), room) for text in block]
            features.append(_with_classes(method, encoder.config, names).text_features().float().cpu())
    return torch.cat(features), cut


def check_context(method: Method) -> None:
    """Raise CoopError for a run that learned no context, one of each class or image, or another image tower."""
    unified = isinstance(method, PromptLearner) and method.transfers_to_other_classes
    plain = not (method.needs_images or method.text_depends_on_image) and type(method).logits is Method.logits
    if not (unified and plain):
        raise CoopError(
            f"run=: this run's method ({type(method).__name__}) has no context that other words can stand behind: that "
            "takes a unified context in front of frozen CLIP features, such as method=coop (class_specific=false)"
        )


def _tokens_around(method: PromptLearner) -> int:
    """How many tokens a prompt has beside the class name and the special ones."""
    alone = method.clip.token_ids(method.classnames)
    whole = (method.ids != method.clip.pad_id).sum(dim=1).tolist()
    return max(length - len(ids) for length, ids in zip(whole, alone, strict=True))


def shorten(clip: FrozenCLIP, text: str, room: int) -> str:
    """A text without its last words, so many that it has at most `room` tokens with the special ones."""
    while len(clip.token_ids([text])[0]) > room:
        text = text.rpartition(" ")[0] or text[: len(text) // 2]
    return text


def _with_classes(method: Method, node: DictConfig, classnames: list[str]) -> Method:
    other = build_method(node, method.clip, classnames).to(method.clip.device).eval()
    other.load_state_dict(method.state_dict())
    other.same_classes = False
    return other
