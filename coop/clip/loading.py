"""Getting an open_clip model with its weights, or one message that says what is missing and how to get it."""

import difflib
import hashlib
import json
import logging
import os
import warnings
import zipfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import huggingface_hub
import open_clip
import torch
from huggingface_hub.utils import get_session
from open_clip import SimpleTokenizer
from open_clip.factory import get_model_config, parse_model_name
from open_clip.pretrained import download_pretrained_from_hf, get_pretrained_cfg, is_pretrained_cfg
from torch import nn

from coop.clip import PRECISIONS
from coop.errors import CoopError, first_line

CONFIG = "open_clip_config.json"
PROBE_SECONDS = 5
EXAMPLES = {"hf-hub:": "hf-hub:ORG/NAME", "local-dir:": "local-dir:FOLDER"}


def load_model(
    model: str, pretrained: str | None, *, precision: str, cache_dir: str | None
) -> tuple[nn.Module, object]:
    """An open_clip model with its weights, in eval mode, and its tokenizer.

    Args and errors as in `FrozenCLIP.load`.
    """
    if precision not in PRECISIONS:
        raise CoopError(f"backbone.precision={precision}: allowed are {', '.join(PRECISIONS)}")
    schema, model = check_source(model, pretrained)
    source = f"{model} ({pretrained})" if pretrained else model
    needs_hub = schema == "hf-hub" or (schema is None and not os.path.isfile(pretrained))
    with _hub_access(needs_hub):
        # A registry model's tokenizer comes first: what it lacks is cheap to find out.
        tokenizer = _tokenizer(model, pretrained, cache_dir, source) if schema is None else None
        loaded = _create(model, pretrained, precision, cache_dir, source).eval()
        _check_finite(loaded, source)
        return loaded, tokenizer or _tokenizer(model, pretrained, cache_dir, source)


def check_source(model: str, pretrained: str | None) -> tuple[str | None, str]:
    """Check the name of a backbone, before anything is downloaded or built.

    Returns:
        open_clip's schema ("hf-hub", "local-dir", None for its registry), and the name with ~ written out.

    Raises:
        CoopError: no such model, tag or folder, or weights that were trained with another activation.
    """
    for prefix, example in EXAMPLES.items():
        if model.strip() == prefix:
            raise CoopError(f"backbone.model={model}: nothing stands after {prefix}; write {example}")
    try:
        schema, identifier = parse_model_name(model)
    except ValueError as error:
        raise CoopError(f"backbone.model={model}: {error}; write {' or '.join(EXAMPLES.values())}") from None
    if schema and pretrained:
        raise CoopError(f"backbone.pretrained={pretrained}: {model} brings its own weights; leave pretrained out")
    if schema == "local-dir":
        folder = Path(identifier).expanduser()
        _check_local_dir(folder)
        return schema, f"local-dir:{folder}"
    if schema is None:
        _check_registry_name(model, pretrained)
    return schema, model


def clip_tokenizer(model: str) -> SimpleTokenizer | None:
    """CLIP's own tokenizer, if it is that of a backbone (after `check_source`) and no download is needed to tell."""
    schema, name = parse_model_name(model)
    if schema == "hf-hub" or (schema is None and "siglip" in name.lower()):
        return None
    file = Path(name).expanduser() / CONFIG
    config = get_model_config(name) if schema is None else json.loads(file.read_text(encoding="utf-8"))
    has_another = config.get("model_cfg", config).get("text_cfg", {}).get("hf_tokenizer_name")
    return None if has_another else _clip_tokenizer()


@cache
def _clip_tokenizer() -> SimpleTokenizer:
    """Takes a while to read its merges; every run of a study asks for it."""
    return SimpleTokenizer()


def _check_local_dir(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise CoopError(f"{folder}: no {CONFIG} there; a local-dir: backbone is a folder with it and weights")
    if not any(path.suffix in (".safetensors", ".bin", ".pth") for path in folder.iterdir()):
        raise CoopError(f"{folder}: {CONFIG} is there, the weights are not (open_clip_model.safetensors)")
    _check_config_file(folder / CONFIG)


def _check_registry_name(model: str, pretrained: str | None) -> None:
    """Name, tag and activation, all before anything is downloaded or built."""
    config = get_model_config(model)
    if config is None:
        near = difflib.get_close_matches(model, open_clip.list_models(), n=4, cutoff=0.5)
        raise CoopError(
            f"backbone.model={model}: open_clip has no such model; near matches: {', '.join(near) or 'none'}"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        raise CoopError(
            f"backbone.model={model}: needs backbone.pretrained=TAG or a checkpoint file; its tags: {', '.join(tags)}"
        )
    quick_gelu = config.get("quick_gelu", False)
    if os.path.isfile(pretrained):
        trained_with_quick_gelu = quick_gelu or _is_torchscript(pretrained)
    elif is_pretrained_cfg(model, pretrained):
        trained_with_quick_gelu = get_pretrained_cfg(model, pretrained).get("quick_gelu", False)
    else:
        raise CoopError(
            f"backbone.pretrained={pretrained}: neither a file nor a tag of {model}; its tags: {', '.join(tags)}"
        )
    if trained_with_quick_gelu != quick_gelu:
        base = model.removesuffix("-quickgelu")
        right = f"{base}-quickgelu" if trained_with_quick_gelu else base
        raise CoopError(
            f"backbone.model={model} with pretrained={pretrained}: the weights were trained with "
            f"{'QuickGELU' if trained_with_quick_gelu else 'GELU'}; this architecture has the other activation and "
            f"would be wrong by several points; use backbone.model={right}"
        )


def _create(model: str, pretrained: str | None, precision: str, cache_dir: str | None, source: str) -> nn.Module:
    is_file = pretrained is not None and os.path.isfile(pretrained)
    try:
        if is_file and _is_torchscript(pretrained):
            return _from_torchscript(model, pretrained, precision)
        return open_clip.create_model(
            model, pretrained, precision=precision, cache_dir=cache_dir, require_pretrained=True
        )
    except Exception as error:
        if is_file or model.startswith("local-dir:"):
            raise CoopError(
                f"{source}: the weights could not be read or do not fit this architecture: {_why_unreadable(error)}"
            ) from error
        raise CoopError(_how_to_get(source, model, pretrained, cache_dir, error)) from error


def _why_unreadable(error: Exception) -> str:
    """Never torch's advice to load with weights_only=False, which would run what a stranger wrote into the file."""
    if "weights_only" in str(error) or "Weights only" in str(error):
        return (
            "the file is damaged, or holds Python objects beside the tensors, which could run code and are not loaded; "
            "save its state_dict alone, best with safetensors.torch.save_file"
        )
    return first_line(error)[:300]


def _is_torchscript(path: str) -> bool:
    """OpenAI published its weights as TorchScript archives: zip files that carry code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def is_program(path: str) -> bool:
    """Whether a file of weights is a TorchScript archive, and not one that OpenAI published: loading it runs it."""
    if not (os.path.isfile(path) and _is_torchscript(path)):
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    urls = [get_pretrained_cfg(*pair).get("url", "") for pair in open_clip.list_pretrained()]
    return not any("openaipublic" in url and digest.hexdigest() in url for url in urls)


def hub_repository(model: str, pretrained: str | None) -> str | None:
    """The repository of the Hugging Face hub that holds a backbone's weights; None where that is not known."""
    if model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:")
    return (get_pretrained_cfg(model, pretrained).get("hf_hub", "").rstrip("/") or None) if pretrained else None


def has_public_weights(model: str, pretrained: str | None) -> bool:
    """Whether another machine can load a backbone by the same name: neither a file nor a folder of one's own."""
    return model.startswith("hf-hub:") or bool(pretrained and get_pretrained_cfg(model, pretrained))


def _check_finite(model: nn.Module, source: str) -> None:
    """One pass over the weights; what is wrong with them would look like a training that diverges."""
    for name, weight in model.named_parameters():
        if weight.numel() and not torch.stack(weight.detach().aminmax()).isfinite().all():
            raise CoopError(
                f"{source}: {name} holds values that are not finite; get the weights again, they are damaged"
            )


def _from_torchscript(model: str, path: str, precision: str) -> nn.Module:
    """open_clip would unpickle what is no archive after all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated; these archives will not change
        state = torch.jit.load(path, map_location="cpu").state_dict()
    for key in ("input_resolution", "context_length", "vocab_size"):
        state.pop(key, None)
    logging.disable(logging.WARNING)  # open_clip warns of random weights; ours come right afterwards
    try:
        built = open_clip.create_model(model, precision=precision)
    finally:
        logging.disable(logging.NOTSET)
    built.load_state_dict(state)
    return built


@contextmanager
def _hub_access(needed: bool):
    """Without a way to the hub, look only into its cache: otherwise each file costs many seconds of retries."""
    constants = huggingface_hub.constants
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or (needed and not _hub_answers())
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _hub_answers() -> bool:
    try:
        get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # whatever the http library raises: there is no way to the hub
        return False
    return True


def _check_config_file(path: Path) -> None:
    """Raises CoopError for a model's config that asks for its tokenizer's code to be run, or is not readable."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        text = config.get("model_cfg", config).get("text_cfg", {})
        options = {**text, **text.get("tokenizer_kwargs", {})}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError) as error:
        raise CoopError(f"{path}: not the config of an open_clip model ({error})") from error
    if options.get("trust_remote_code"):
        raise CoopError(f"{path}: sets trust_remote_code, with which a tokenizer runs code of its own; take it out")


def _tokenizer(model: str, pretrained: str | None, cache_dir: str | None, source: str):
    try:
        if model.startswith("hf-hub:"):
            repository = model.removeprefix("hf-hub:")
            _check_config_file(Path(download_pretrained_from_hf(repository, filename=CONFIG, cache_dir=cache_dir)))
        return open_clip.get_tokenizer(model, cache_dir=cache_dir)
    except CoopError:
        raise
    except ImportError as error:
        raise CoopError(f"{source}: its tokenizer needs: pip install 'coop-clip[hf]' ({error})") from error
    except Exception as error:
        raise CoopError(_how_to_get(source, model, pretrained, cache_dir, error)) from error


def _how_to_get(source: str, model: str, pretrained: str | None, cache_dir: str | None, error: Exception) -> str:
    entry = get_pretrained_cfg(model, pretrained) if pretrained else {}
    repository = model.removeprefix("hf-hub:") if pretrained is None else entry.get("hf_hub", "").rstrip("/")
    cache = cache_dir or (huggingface_hub.constants.HF_HUB_CACHE if repository else os.path.expanduser("~/.cache/clip"))
    ways = []
    if repository:
        ways.append(
            f"on a machine with a network: `hf download {repository}`, then copy the cache folder or set HF_HOME to it"
        )
    if entry.get("url"):
        ways.append(f"download {entry['url']} and give backbone.pretrained=FILE")
    if pretrained is not None:
        ways.append("any local checkpoint of this architecture: backbone.pretrained=FILE")
    ways.append("a folder with open_clip_config.json and weights: backbone=open_clip backbone.model=local-dir:FOLDER")
    ways.append("backbone=tiny is bundled and needs no download")
    listed = "\n".join(f"  - {way}" for way in ways)
    return (
        f"the weights of {source} are not on this machine and could not be fetched.\n"
        f"Looked in {cache}.\nReason: {first_line(error)[:300]}\nWays to get them:\n{listed}"
    )
