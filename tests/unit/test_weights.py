"""Every way weights come in, and what is said when they do not come."""

import json

import huggingface_hub
import numpy as np
import open_clip
import pytest
import small_clip as small
import torch
from clip_folder import CONFIG, PREPROCESS, write_clip_folder
from safetensors.torch import save_file

from coop import CoopError, FrozenCLIP
from coop.clip import loading as weights

TEXTS = ["a photo of a dog.", "a cat"]


@pytest.fixture(scope="module", autouse=True)
def registry(tmp_path_factory):
    """Two small models in open_clip's registry: with GELU and with QuickGELU."""
    folder = tmp_path_factory.mktemp("registry")
    for name, quick_gelu in (("test-tiny", False), ("test-tiny-quickgelu", True)):
        (folder / f"{name}.json").write_text(json.dumps({**CONFIG, "quick_gelu": quick_gelu}))
    known = dict(open_clip.factory._MODEL_CONFIGS)
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIGS.clear()
    open_clip.factory._MODEL_CONFIGS.update(known)


@pytest.fixture(scope="module", autouse=True)
def no_network(tmp_path_factory):
    """Any attempt to reach the hub is recorded; none succeeds."""
    patch = pytest.MonkeyPatch()
    asked = []
    patch.setattr(weights, "_hub_answers", lambda: bool(asked.append(1)))
    yield asked
    patch.undo()


@pytest.fixture
def asked(no_network):
    no_network.clear()
    return no_network


def images() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 32, 32)).astype(np.float32))


def same_features(clip: FrozenCLIP, expected: FrozenCLIP, tolerance: float = 1e-6) -> bool:
    return torch.allclose(
        clip.encode_image(images()), expected.encode_image(images()), atol=tolerance
    ) and torch.allclose(clip.encode_text(TEXTS), expected.encode_text(TEXTS), atol=tolerance)


class Archived(torch.nn.Module):
    """A module whose state_dict is that of OpenAI's published archives."""

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        for key, value in state.items():
            *parents, name = key.split(".")
            module = self
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, torch.nn.Module())
                module = getattr(module, parent)
            module.register_buffer(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_archive(path, half: bool = False):
    state = {key: value.half() if half else value for key, value in small.small_clip().state_dict().items()}
    extra = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    module = Archived(state | {key: torch.tensor(value) for key, value in extra.items()})
    torch.jit.save(torch.jit.trace(module, torch.zeros(1)), path)
    return path


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_openais_torchscript_archive(tmp_path, small_clip, half, asked):
    path = write_archive(tmp_path / "archive.pt", half)
    clip = FrozenCLIP.load("test-tiny-quickgelu", str(path))
    assert same_features(clip, small_clip, 2e-3 if half else 1e-6)
    assert clip.encode_image(images()).dtype == torch.float32
    assert (clip.name, clip.pretrained) == ("test-tiny-quickgelu", str(path))
    assert not asked, "a local file needs no network"


def test_an_archive_was_trained_with_quickgelu(tmp_path):
    path = write_archive(tmp_path / "archive.pt")
    with pytest.raises(CoopError, match=r"QuickGELU.*backbone.model=test-tiny-quickgelu"):
        FrozenCLIP.load("test-tiny", str(path))


def test_an_archive_of_another_architecture(tmp_path):
    module = Archived({"visual.conv1.weight": torch.zeros(3), "logit_scale": torch.zeros(())})
    torch.jit.save(torch.jit.trace(module, torch.zeros(1)), tmp_path / "other.pt")
    with pytest.raises(CoopError, match=r"other.pt.*do not fit this architecture"):
        FrozenCLIP.load("test-tiny-quickgelu", str(tmp_path / "other.pt"))


def test_a_damaged_archive(tmp_path):
    """Still a zip file with code in it, but not one that torch can read."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "damaged.pt", "w") as archive:
        archive.writestr("archive/code/__torch__.py", "nonsense")
        archive.writestr("archive/version", "3")
    with pytest.raises(CoopError, match=r"damaged.pt"):
        FrozenCLIP.load("test-tiny-quickgelu", str(tmp_path / "damaged.pt"))


@pytest.mark.parametrize("kind", ["pt", "nested.pt", "ddp.pt", "safetensors"])
def test_local_checkpoint_files(tmp_path, small_clip, kind, asked):
    state, path = small.small_clip().state_dict(), tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "nested.pt":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif kind == "ddp.pt":
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        torch.save(state, path)
    assert same_features(FrozenCLIP.load("test-tiny-quickgelu", str(path)), small_clip)
    assert not asked


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    import os

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(CoopError, match=r"trap.pt"):
        FrozenCLIP.load("test-tiny-quickgelu", str(tmp_path / "trap.pt"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_truncated_files(tmp_path, kind):
    path = tmp_path / f"weights.{kind}"
    if kind == "pt":
        torch.save(small.small_clip().state_dict(), path)
    else:
        save_file(small.small_clip().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CoopError, match=rf"weights.{kind}.*could not be read or do not fit") as caught:
        FrozenCLIP.load("test-tiny-quickgelu", str(path))
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape(tmp_path):
    state = small.small_clip().state_dict()
    state["visual.proj"] = torch.zeros(64, 32)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(CoopError, match=r"other.pt.*do not fit"):
        FrozenCLIP.load("test-tiny-quickgelu", str(tmp_path / "other.pt"))


@pytest.mark.parametrize(
    ("model", "tag", "right"),
    [("ViT-B-16", "openai", "ViT-B-16-quickgelu"), ("RN50", "openai", "RN50-quickgelu"),
     ("ViT-B-16", "dfn2b", "ViT-B-16-quickgelu")],
)  # fmt: skip
def test_activation_mismatch_is_found_before_any_download(model, tag, right, asked):
    with pytest.raises(CoopError, match=f"with pretrained={tag}.*use backbone.model={right}$"):
        FrozenCLIP.load(model, tag)
    assert not asked


def test_unknown_model_names_near_matches(asked):
    with pytest.raises(CoopError, match=r"backbone.model=ViT-B-61: .*near matches: ViT-B-16"):
        FrozenCLIP.load("ViT-B-61", "openai")
    with pytest.raises(CoopError, match=r"near matches: .*test-tiny"):
        FrozenCLIP.load("test-tyni")
    assert not asked


def test_unknown_tag_lists_the_tags(asked):
    with pytest.raises(
        CoopError, match=r"backbone.pretrained=opneai: neither a file nor a tag of RN50-quickgelu.*openai"
    ):
        FrozenCLIP.load("RN50-quickgelu", "opneai")
    with pytest.raises(CoopError, match=r"backbone.model=RN50-quickgelu: needs backbone.pretrained=TAG .*openai"):
        FrozenCLIP.load("RN50-quickgelu")
    assert not asked


def test_unknown_precision(tmp_path):
    folder = write_clip_folder(tmp_path / "clip")
    with pytest.raises(CoopError, match=r"precision=fp8.*fp16"):
        FrozenCLIP.load(f"local-dir:{folder}", precision="fp8")


def test_local_dir(tmp_path, small_clip, monkeypatch, asked):
    folder = write_clip_folder(tmp_path / "clip")
    clip = FrozenCLIP.load(f"local-dir:{folder}", name="mine")
    assert same_features(clip, small_clip)
    assert clip.name == "mine"
    assert tuple(clip.preprocess_cfg.mean) == (0.5, 0.5, 0.5)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same_features(FrozenCLIP.load("local-dir:~/clip"), small_clip)
    assert not asked


def test_local_dir_takes_no_tag(tmp_path):
    """open_clip ignores the tag; results.json would name weights that were never loaded."""
    folder = write_clip_folder(tmp_path / "clip")
    with pytest.raises(CoopError, match=r"backbone.pretrained=openai"):
        FrozenCLIP.load(f"local-dir:{folder}", "openai")


def test_local_dir_without_config_or_weights(tmp_path):
    folder = write_clip_folder(tmp_path / "clip")
    with pytest.raises(CoopError, match=r"nowhere: no open_clip_config.json there"):
        FrozenCLIP.load(f"local-dir:{tmp_path / 'nowhere'}")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(CoopError, match=r"clip: open_clip_config.json is there, the weights are not"):
        FrozenCLIP.load(f"local-dir:{folder}")
    write_clip_folder(folder)
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(CoopError, match=r"clip: no open_clip_config.json there"):
        FrozenCLIP.load(f"local-dir:{folder}")


@pytest.mark.parametrize("damage", ["truncated", "other shape", "config"])
def test_damaged_local_dir(tmp_path, damage):
    folder = write_clip_folder(tmp_path / "clip")
    file = folder / ("open_clip_config.json" if damage == "config" else "open_clip_model.safetensors")
    if damage == "other shape":
        save_file({**small.small_clip().state_dict(), "visual.proj": torch.zeros(64, 32)}, file)
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CoopError, match=str(folder)):
        FrozenCLIP.load(f"local-dir:{folder}")


def write_hub_cache(cache, repository: str = "org/name", revision: str = "abc123"):
    """The folder that huggingface_hub leaves behind after a download."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = write_clip_folder(root / "snapshots" / revision)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(revision)
    return snapshot


def test_hub_name_from_the_cache_alone(tmp_path, small_clip, monkeypatch, asked):
    write_hub_cache(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    clip = FrozenCLIP.load("hf-hub:org/name")
    assert same_features(clip, small_clip)
    assert asked == [1], "one probe, not one wait per file"
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False, "the switch must go back"


def test_hub_name_from_a_cache_dir_of_the_users(tmp_path, small_clip):
    write_hub_cache(tmp_path / "mine")
    assert same_features(FrozenCLIP.load("hf-hub:org/name", cache_dir=str(tmp_path / "mine")), small_clip)


def test_missing_hub_weights_say_what_to_do(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(CoopError) as caught:
        FrozenCLIP.load("hf-hub:org/name")
    said = str(caught.value)
    assert "hf-hub:org/name" in said
    assert str(tmp_path / "empty") in said
    assert "hf download org/name" in said
    assert "backbone=tiny" in said
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("model", "tag", "ways"),
    [("ViT-B-16-quickgelu", "openai", ["hf download timm/vit_base_patch16_clip_224.openai", "=FILE"]),
     ("ViT-B-16-SigLIP2", "webli", ["hf download timm/ViT-B-16-SigLIP2", "backbone.pretrained=FILE"]),
     ("MobileCLIP-S2", "datacompdr", ["hf download apple/MobileCLIP-S2-OpenCLIP", "backbone.pretrained=FILE"])],
)  # fmt: skip
def test_missing_registry_weights_say_what_to_do(tmp_path, monkeypatch, asked, model, tag, ways):
    monkeypatch.setattr(weights.open_clip, "create_model", missing)
    monkeypatch.setattr(weights.open_clip, "get_tokenizer", lambda *_, **__: None)
    with pytest.raises(CoopError) as caught:
        FrozenCLIP.load(model, tag, cache_dir=str(tmp_path / "empty"))
    said = str(caught.value)
    assert all(part in said for part in (f"{model} ({tag})", str(tmp_path / "empty"), "local-dir:FOLDER", *ways)), said
    assert len(asked) == 1


def missing(*_, **__):
    raise FileNotFoundError("not in the cache")


def test_missing_weights_end_to_end_without_network(tmp_path):
    """open_clip itself, really offline, with an empty cache."""
    with pytest.raises(CoopError, match=r"the weights of RN50-quickgelu \(openai\) are not on this machine"):
        FrozenCLIP.load("RN50-quickgelu", "openai", cache_dir=str(tmp_path / "empty"))


def test_preprocessing_comes_with_the_folder(tmp_path):
    folder = write_clip_folder(tmp_path / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {**PREPROCESS, "mean": [0.1, 0.2, 0.3], "interpolation": "bilinear"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    cfg = FrozenCLIP.load(f"local-dir:{folder}").preprocess_cfg
    assert (tuple(cfg.mean), cfg.interpolation) == ((0.1, 0.2, 0.3), "bilinear")


def test_a_tokenizer_that_needs_more_packages_is_noticed_before_the_download(monkeypatch):
    """SigLIP's tokenizer needs `transformers`: not a reason to fetch gigabytes first."""

    def absent(*_, **__):
        raise ImportError("Please install transformers")

    def download(*_, **__):
        raise AssertionError("the weights were fetched first")

    monkeypatch.setattr(weights.open_clip, "get_tokenizer", absent)
    monkeypatch.setattr(weights.open_clip, "create_model", download)
    with pytest.raises(CoopError, match=r"ViT-B-16-SigLIP2.*pip install 'coop-clip\[hf\]'"):
        FrozenCLIP.load("ViT-B-16-SigLIP2", "webli")


def test_an_archive_is_not_said_to_be_missing(tmp_path, caplog):
    """open_clip warns of random weights when a model is built; ours are put in right afterwards."""
    FrozenCLIP.load("test-tiny-quickgelu", str(write_archive(tmp_path / "archive.pt")))
    assert "initialized randomly" not in caplog.text
