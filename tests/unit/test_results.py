"""What a run writes, reading it back, and what is refused."""

import json
from functools import cache

import configs
import open_clip
import pytest
import small_clip as small
import torch
from clip_folder import write_clip_folder
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file

from coop import CoopError, FrozenCLIP, PromptLearner
from coop.evaluation.metrics import predict, score
from coop.methods.zero_shot import ZeroShot
from coop.runs.folder import (
    PROMPT,
    RESULTS,
    check_backbone,
    claim_folder,
    closing_table,
    load_into,
    load_prompt,
    read_results,
    save_prompt,
)
from coop.system.files import write_atomically, write_json

NAMES = ["dog", "grey_cat", "Ärger"]


@cache
def config(*overrides: str):
    return configs.composed("method.n_ctx=4", *overrides)


def saved(path, clip, names=NAMES, **options) -> PromptLearner:
    learner = PromptLearner(clip, names, n_ctx=4, **options)
    save_prompt(path, learner, config(), names)
    return learner


@pytest.mark.parametrize("class_specific", [False, True], ids=["unified", "csc"])
def test_a_prompt_comes_back_as_it_was(small_clip, tmp_path, class_specific):
    learner = saved(tmp_path / PROMPT, small_clip, class_specific=class_specific)
    prompt = load_prompt(tmp_path / PROMPT)
    assert list(prompt.state) == ["ctx"]
    assert torch.equal(prompt.state["ctx"], learner.ctx)
    again = PromptLearner(small_clip, NAMES, n_ctx=4, class_specific=class_specific)
    load_into(again, prompt, tmp_path / PROMPT)
    assert torch.equal(again(), learner())


def test_a_prompt_is_the_same_file_each_time(small_clip, tmp_path):
    learner, files = PromptLearner(small_clip, NAMES, n_ctx=4), set()
    for _ in range(20):  # safetensors alone writes two files
        save_prompt(tmp_path / PROMPT, learner, config(), NAMES)
        files.add((tmp_path / PROMPT).read_bytes())
    assert len(files) == 1
    assert torch.equal(load_prompt(tmp_path / PROMPT).state["ctx"], learner.ctx)


def test_everything_needed_to_use_it_is_in_the_file(small_clip, tmp_path):
    saved(tmp_path / PROMPT, small_clip)
    with safe_open(tmp_path / PROMPT, framework="pt") as file:
        metadata = json.loads(file.metadata()["coop"])
    assert metadata["classnames"] == NAMES
    assert metadata["backbone"] == "small"
    assert metadata["fingerprint"] == small_clip.fingerprint()
    assert metadata["dataset"] == "mini"
    assert metadata["method"]["_target_"] == "coop.methods.coop.PromptLearner"
    assert metadata["method"]["n_ctx"] == 4
    assert (tmp_path / PROMPT).stat().st_size < 5000


def test_a_missing_prompt(tmp_path):
    with pytest.raises(
        CoopError, match=r"prompt\.safetensors: no such file; `run=` takes the folder of a finished run"
    ):
        load_prompt(tmp_path / PROMPT)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100, b"\xff" * 100, b"truncated"])
def test_a_file_that_is_no_prompt(small_clip, tmp_path, content):
    path = tmp_path / PROMPT
    if content == b"truncated":
        saved(path, small_clip)
        content = path.read_bytes()[:-10]
    path.write_bytes(content)
    with pytest.raises(CoopError, match=r"prompt\.safetensors: not a prompt written by coop\.train"):
        load_prompt(path)


@pytest.mark.parametrize("metadata", [None, {"other": "x"}, {"coop": "not json"}, {"coop": "{}"}, {"coop": "[]"}])
def test_tensors_of_another_program(small_clip, tmp_path, metadata):
    save_file({"ctx": torch.zeros(4, 128)}, tmp_path / PROMPT, metadata=metadata)
    with pytest.raises(CoopError, match=r"prompt\.safetensors: not a prompt written by coop\.train"):
        check_backbone(load_prompt(tmp_path / PROMPT), small_clip, tmp_path / PROMPT)


def changed_clip(name: str) -> FrozenCLIP:
    model = small.small_clip()
    with torch.no_grad():
        model.visual.proj[0] += 0.1
    return FrozenCLIP(model, small.tokenizer(), name=name)


def test_a_prompt_from_another_backbone_is_refused(small_clip, tmp_path):
    saved(tmp_path / PROMPT, small_clip)
    prompt = load_prompt(tmp_path / PROMPT)
    check_backbone(prompt, small_clip, tmp_path / PROMPT)
    with pytest.raises(CoopError, match=r"learned on small \(None\), this is other \(None\); a prompt works only on"):
        check_backbone(prompt, changed_clip("other"), tmp_path / PROMPT)
    with pytest.raises(CoopError, match=r"this is small \(None\) with other weights"):
        check_backbone(prompt, changed_clip("small"), tmp_path / PROMPT)


def test_the_same_weights_under_another_name_are_accepted(small_clip, tmp_path):
    saved(tmp_path / PROMPT, small_clip)
    renamed = FrozenCLIP(small.small_clip(), small.tokenizer(), name="renamed")
    check_backbone(load_prompt(tmp_path / PROMPT), renamed, tmp_path / PROMPT)


def test_another_activation_is_another_backbone(small_clip, tmp_path):
    saved(tmp_path / PROMPT, small_clip)
    model = open_clip.CLIP(**{**small.MODEL_CFG, "quick_gelu": False}).eval()
    model.load_state_dict(small.small_clip().state_dict())
    other = FrozenCLIP(model, small.tokenizer(), name="other")
    with pytest.raises(CoopError, match="works only on the backbone it was learned on"):
        check_backbone(load_prompt(tmp_path / PROMPT), other, tmp_path / PROMPT)


def test_at_another_precision_the_name_decides(tmp_path):
    folder = write_clip_folder(tmp_path / "clip")
    full = FrozenCLIP.load(f"local-dir:{folder}", name="mine")
    half = FrozenCLIP.load(f"local-dir:{folder}", name="mine", precision="pure_bf16")
    saved(tmp_path / PROMPT, full)
    check_backbone(load_prompt(tmp_path / PROMPT), half, tmp_path / PROMPT)
    with pytest.raises(CoopError, match="this is other"):
        half.name = "other"
        check_backbone(load_prompt(tmp_path / PROMPT), half, tmp_path / PROMPT)


@pytest.mark.parametrize("options", [{"n_ctx": 5}, {"n_ctx": 4, "class_specific": True}])
def test_a_prompt_of_another_shape_is_refused(small_clip, tmp_path, options):
    saved(tmp_path / PROMPT, small_clip)
    with pytest.raises(CoopError, match=r"prompt\.safetensors: does not fit this method.*size mismatch"):
        load_into(PromptLearner(small_clip, NAMES, **options), load_prompt(tmp_path / PROMPT), tmp_path / PROMPT)


def test_results_that_cannot_be_read(tmp_path):
    with pytest.raises(CoopError, match=r"results\.json: no such file"):
        read_results(tmp_path)
    (tmp_path / RESULTS).write_text("{")
    with pytest.raises(CoopError, match=r"results\.json: not readable as JSON"):
        read_results(tmp_path)
    (tmp_path / RESULTS).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CoopError, match=r"results\.json: not readable as JSON"):
        read_results(tmp_path)


# A run's folder belongs to one config


def claimed(folder, *overrides: str):
    claim_folder(folder, config(*overrides))
    (folder / RESULTS).write_text("{}")
    return folder


def test_the_same_config_may_come_back(tmp_path):
    claimed(tmp_path)
    claim_folder(tmp_path, config())
    claim_folder(
        tmp_path, config("num_workers=7", "features=cached", "logger=csv", "trainer.devices=2", "cache_dir=/x")
    )
    assert OmegaConf.load(tmp_path / "config.yaml").num_workers == 7


@pytest.mark.parametrize(
    "override",
    ["seed=2", "shots=4", "epochs=3", "augmentation=online", "batch_size=16", "dataset.template='x {}'",
     "method.n_ctx=5", "optimizer.lr=0.1", "backbone.precision=pure_bf16", "trainer.precision=bf16-mixed",
     "dataset=mini_blur", "method=zero_shot"],
)  # fmt: skip
def test_another_config_is_refused_and_the_difference_named(tmp_path, override):
    claimed(tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    key = override.split("=")[0]
    overrides = [override] if key != "method" else [override, "~method.n_ctx"]
    with pytest.raises(CoopError, match=r"holds a run with another config; choose another hydra.run.dir") as caught:
        if key == "method":
            claim_folder(tmp_path, configs.composed("method=zero_shot"))
        else:
            claim_folder(tmp_path, config(*overrides))
    assert key.split(".")[-1] in str(caught.value)
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_folder_where_nothing_was_computed_is_free(tmp_path):
    claim_folder(tmp_path, config())
    claim_folder(tmp_path, config("seed=2"))
    assert OmegaConf.load(tmp_path / "config.yaml").seed == 2


@pytest.mark.parametrize("content", ["{", "", "seed: 1\n", "- a\n", "seed: [", "\x00"])
def test_a_damaged_config_is_said_to_be_damaged(tmp_path, content):
    claimed(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(CoopError, match=r"config"):
        claim_folder(tmp_path, config())


# Files


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    import os

    write_json(tmp_path / "a" / "x.json", {"é": 1})
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"é": 1}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CoopError, match=r"x\.json: cannot be written \(No space left on device; free some space"):
        write_json(tmp_path / "a" / "x.json", {"é": 2})
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"é": 1}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]


def test_a_file_where_a_folder_is_needed(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(CoopError, match="cannot be written"):
        write_atomically(tmp_path / "a" / "x.json", b"")


# Scores


def oracle(small_clip, predictions: list[int], classes: int) -> torch.Tensor:
    """image_features whose nearest class is the one given."""
    method = ZeroShot(small_clip, [f"thing {index}" for index in range(classes)], template="{}")
    return method, method.text_features()[torch.tensor(predictions)]


def test_micro_and_macro_accuracy_by_hand(small_clip):
    """Class 0: 3 of 4 right; class 1: 0 of 1; class 2: 1 of 1."""
    method, features = oracle(small_clip, [0, 0, 0, 1, 0, 2], 3)
    scores = score(predict(method, features, labels=torch.tensor([0, 0, 0, 0, 1, 2])), 3)
    assert scores["acc"] == pytest.approx(4 / 6, abs=1e-6)
    assert scores["macro_acc"] == pytest.approx((3 / 4 + 0 + 1) / 3, abs=1e-6)


def test_macro_accuracy_is_over_the_classes_that_have_images(small_clip):
    """A class without test images has no accuracy, even where other classes' images are taken for it."""
    method, features = oracle(small_clip, [0, 2, 1], 4)
    scores = score(predict(method, features, labels=torch.tensor([0, 0, 1])), 4)
    assert scores["acc"] == pytest.approx(2 / 3, abs=1e-6)
    assert scores["macro_acc"] == pytest.approx((1 / 2 + 1) / 2, abs=1e-6)


def test_scores_of_many_batches_are_those_of_one(small_clip, monkeypatch):
    predictions, labels = [index % 3 for index in range(50)], torch.arange(50) % 4
    method, features = oracle(small_clip, predictions, 4)
    whole = score(predict(method, features, labels=labels), 4)
    monkeypatch.setattr(method, "images_at_once", 7)
    assert score(predict(method, features, labels=labels), 4) == pytest.approx(whole, abs=1e-6)
    assert whole["acc"] == pytest.approx(
        sum(p == t for p, t in zip(predictions, labels.tolist(), strict=True)) / 50, abs=1e-6
    )


def test_the_closing_table(capsys, tmp_path):
    rows = [("zero-shot", {"acc": 0.7461, "macro_acc": 0.5}), ("coop", {"acc": 0.9, "macro_acc": 1.0})]
    closing_table("title", rows, {"results": tmp_path / ("x" * 200) / RESULTS})
    printed = capsys.readouterr().out
    assert "74.61" in printed
    assert "100.00" in printed
    assert f"{tmp_path / ('x' * 200) / RESULTS}" in printed, "a path must stay in one piece, to be copied"
