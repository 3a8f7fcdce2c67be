"""Files that others made: whatever stands in them is data, and what is wrong with them is said in one message."""

import json
import shutil
import sys
import zipfile
from functools import cache
from pathlib import Path

import configs
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file

from coop import CoopError, FrozenCLIP, PromptLearner
from coop.config import check, check_dataset
from coop.data.manifest import manifest_sha256
from coop.data.readers import read_dataset
from coop.runs.checkpoint import RUN, check_fit, read_checkpoint
from coop.runs.folder import (
    CONFIG,
    PROMPT,
    RESULTS,
    checksum,
    claim_folder,
    claim_for_evaluation,
    decisive,
    differing,
    load_config,
    load_into,
    load_prompt,
    read_finished,
    read_results,
    recorded,
    save_prompt,
)
from coop.runs.trained import load_trained
from coop.runs.trust import offered
from coop.system.files import write_json

NAMES = ["dog", "grey_cat", "Ärger"]
RESULT = {
    "task": "train", "method": "coop", "backbone": "tiny", "dataset": "mini", "classes": "all", "split": "published",
    "shots": 4, "seed": 1, "num_classes": 25, "trainable_params": 2048, "augmentation": "none", "epochs": 2,
    "n_test": 99, "fit_seconds": 1.5, "val/acc": None, "test/acc": 0.5, "test/macro_acc": 0.5, "zero_shot/acc": 0.4,
    "zero_shot/macro_acc": 0.4, "of_a_later_version": {"a": 1},
}  # fmt: skip


@cache
def composed(*overrides: str):
    return configs.composed("method.n_ctx=4", *overrides)


def plain(*overrides: str) -> dict:
    return OmegaConf.to_container(composed(*overrides), resolve=True)


def changed(content: dict, key: str, value) -> dict:
    """A copy with one dotted key set; `...` takes it out."""
    copy = json.loads(json.dumps(content))
    *groups, last = key.split(".")
    node = copy
    for group in groups:
        node = node[group]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return copy


def write_config(folder: Path, content) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def prompt_file(small_clip, tmp_path) -> Path:
    save_prompt(tmp_path / PROMPT, PromptLearner(small_clip, NAMES, n_ctx=4), composed(), NAMES)
    return tmp_path / PROMPT


@pytest.fixture
def run_folder(tiny_clip, tmp_path) -> Path:
    """A run on the bundled CLIP, as far as loading it goes."""
    folder = write_config(tmp_path / "run", plain())
    save_prompt(folder / PROMPT, PromptLearner(tiny_clip, NAMES, n_ctx=4), composed(), NAMES)
    return folder


# Code that a folder names


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that would be noticed if it were imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "trap_module.py").write_text("raise SystemExit('the module was imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    yield
    assert "trap_module" not in sys.modules


@pytest.mark.parametrize(
    "target",
    ["os.system", "timeit.timeit", "subprocess.run", "builtins.exec", "trap_module.Method", "coop.methods.Method",
     "coop.methods.coop.PromptLearner.__init__", "torch.load", "..", "", "${oc.env:HOME}"],
)  # fmt: skip
def test_a_method_that_no_own_config_names_is_not_imported(run_folder, trap, monkeypatch, target):
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("it was called"))
    write_config(run_folder, changed(plain(), "method._target_", target))
    with pytest.raises(CoopError, match=r"config\.yaml: .*_target_") as caught:
        load_trained(run_folder, accelerator="cpu")
    if "$" not in target:
        assert "neither imported nor called" in str(caught.value)
        assert "--config-dir" in str(caught.value)


def test_the_method_in_a_prompts_metadata_is_not_even_looked_at(run_folder, trap):
    tensors, metadata = parts(run_folder / PROMPT)
    rewrite(run_folder / PROMPT, tensors, changed(metadata, "method._target_", "trap_module.Method"))
    assert type(load_trained(run_folder, accelerator="cpu").method) is PromptLearner


def test_a_method_of_ones_own_is_loaded_with_its_config_dir(run_folder, tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "my_method.py").write_text(
        "from coop import PromptLearner\nclass Mine(PromptLearner):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    config = tmp_path / "conf" / "method" / "inner" / "mine.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("# @package _global_\nmethod:\n  _target_: my_method.Mine\n")
    write_config(run_folder, changed(plain(), "method._target_", "my_method.Mine"))
    with pytest.raises(CoopError, match=r"my_method\.Mine"):
        load_trained(run_folder, accelerator="cpu")
    method = load_trained(run_folder, accelerator="cpu", config_dir=str(tmp_path / "conf")).method
    assert type(method).__name__ == "Mine"
    config.write_text("_target_: [")  # a damaged file offers nothing and stops nothing
    with pytest.raises(CoopError, match=r"my_method\.Mine"):
        load_trained(run_folder, accelerator="cpu", config_dir=str(tmp_path / "conf"))
    with pytest.raises(CoopError, match="no such folder"):
        load_trained(run_folder, accelerator="cpu", config_dir=str(tmp_path / "nowhere"))


def test_what_is_offered_are_the_packages_own_methods_and_readers():
    assert {target.rpartition(".")[0].rpartition(".")[0] for target in offered("method")} == {"coop.methods"}
    assert {target.split(".")[1] for target in offered("dataset")} == {"data"}


@pytest.mark.parametrize("target", ["timeit.timeit", "os.system", "builtins.exec", "builtins.print", "os.path.join"])
def test_a_reader_is_a_function_of_a_data_root(target):
    node = OmegaConf.create(plain()["dataset"] | {"_target_": target})
    with pytest.raises(CoopError, match=r"dataset\._target_=.*"):
        check_dataset(node)


def test_a_reader_returns_splits(monkeypatch):
    monkeypatch.setattr("coop.data.readers.mini.read_mini", lambda data_root, *, shift: "surprise")
    with pytest.raises(CoopError, match="returned str, expected"):
        read_dataset(composed().dataset, None)


def test_a_wrong_argument_in_a_folder_names_the_file(run_folder):
    write_config(run_folder, changed(plain(), "method.n_ctx", "many"))
    with pytest.raises(CoopError, match=r"config\.yaml: method\.n_ctx=many: must be int or null"):
        load_trained(run_folder, accelerator="cpu")


@pytest.mark.parametrize(
    "value", ["${oc.env:SECRET}", "x${coop.assets:mini}", "${seed}", ["a", "${oc.env:SECRET}"], "???"]
)
@pytest.mark.parametrize("key", ["data_root", "dataset.path", "method.ctx_init", "backbone.name", "of_a_later_version"])
def test_nothing_in_a_config_is_resolved(tmp_path, monkeypatch, key, value):
    monkeypatch.setenv("SECRET", "swordfish")
    write_config(tmp_path, changed(plain(), key, value))
    with pytest.raises(CoopError, match=r"config\.yaml: not the config of a run") as caught:
        load_config(tmp_path)
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['false']", "a: &a [x, x]\nb: [*a, *a]", "[" * 1500, "a: " + "1" * 5000,
     "a: !!binary aGk=", "seed: 2024-01-01", "? {a: b}\n: c"],
    ids=["object", "alias", "deep", "long", "binary", "date", "key"],
)  # fmt: skip
def test_yaml_that_is_more_than_plain_values(tmp_path, text):
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(CoopError, match=r"config\.yaml: not"):
        load_config(tmp_path)


def test_a_later_versions_plain_values_are_kept(tmp_path):
    write_config(tmp_path, changed(plain(), "later", {"a": [1, None, 2.5, True]}))
    assert load_config(tmp_path).later.a[2] == 2.5


def test_a_folder_of_the_first_version_is_read(tiny_clip, run_folder):
    """Without what later versions write: targets, manifest, tf32, the optimizer's name, a checksum; its reader moved."""
    old = plain()
    for key in (
        "targets",
        "dataset.manifest",
        "trainer.tf32",
        "optimizer.name",
        "optimizer.eps",
        "features",
        "cache_dir",
    ):
        old = changed(old, key, ...)
    old["dataset"]["_target_"] = "coop.data.mini.read_mini"
    write_config(run_folder, old)
    tensors, metadata = parts(run_folder / PROMPT)
    rewrite(run_folder / PROMPT, tensors, metadata, with_checksum=False)
    trained = load_trained(run_folder, accelerator="cpu")
    assert torch.equal(trained.method.ctx, tensors["ctx"])
    assert (trained.cfg.trainer.tf32, list(trained.cfg.targets)) == (False, [])
    check_dataset(trained.cfg.dataset)
    assert trained.cfg.dataset._target_ == "coop.data.readers.mini.read_mini"


# Types


CONFIG_WRONG = [
    ("shots", "abc"), ("shots", None), ("shots", True), ("shots", 1.5), ("shots", ...), ("seed", -1), ("seed", []),
    ("epochs", "many"), ("augmentation", None), ("batch_size", {}), ("backbone", None), ("backbone", "tiny"),
    ("backbone", []), ("backbone.model", 7), ("backbone.model", ...), ("backbone.pretrained", ["x"]),
    ("backbone.precision", 32), ("backbone.cache_dir", 1), ("dataset", "mini"), ("dataset", None),
    ("dataset.name", 7), ("dataset.name", ...), ("dataset.template", None), ("dataset.classes", "some"),
    ("dataset._target_", None), ("dataset._target_", ["os.system"]), ("dataset._target_", ...),
    ("dataset.epochs", "x"), ("dataset.manifest", 5), ("method", []), ("method", "coop"), ("method._target_", 7),
    ("method._target_", {}), ("method.name", None), ("optimizer", None), ("optimizer", "sgd"), ("trainer", None),
    ("trainer", "default"), ("trainer.precision", 32), ("trainer.precision", "64"), ("trainer.tf32", "no"),
    ("targets", "mini"), ("targets", [1]), ("targets", None), ("data_root", 7), ("data_root", ...),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), CONFIG_WRONG, ids=str)
def test_a_config_of_wrong_types(tmp_path, key, value):
    write_config(tmp_path, changed(plain(), key, value))
    with pytest.raises(
        CoopError, match=rf"config\.yaml: not the config of a run: {key.replace('.', '[.]')}.*(is|missing)"
    ):
        load_config(tmp_path)


@pytest.mark.parametrize("content", [None, 7, "text", [], ["a"], {}, {"seed": 1}])
def test_a_config_that_is_none(tmp_path, content):
    write_config(tmp_path, content)
    with pytest.raises(CoopError, match=r"config\.yaml: not the config of a run"):
        load_config(tmp_path)


RESULTS_WRONG = [
    ("task", "play"), ("task", None), ("task", ...), ("method", 7), ("method", ...), ("backbone", None),
    ("dataset", []), ("shots", "4"), ("shots", True), ("seed", 1.5), ("num_classes", "x"), ("classes", "some"),
    ("test/acc", "0.5"), ("test/acc", 1.5), ("test/acc", float("nan")), ("test/acc", None), ("test/acc", ...),
    ("zero_shot/macro_acc", ...), ("val/acc", "x"), ("fit_seconds", None), ("epochs", "2"), ("targets", []),
    ("targets", {"mini": None}), ("targets", {"mini": {}}), ("targets", {"mini": {"test/acc": 1}}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), RESULTS_WRONG, ids=str)
def test_results_of_wrong_types(tmp_path, key, value):
    (tmp_path / RESULTS).write_text(json.dumps(changed(RESULT, key, value)))
    with pytest.raises(CoopError, match=rf"results\.json: not the results of a run: {key}.*(is|missing)"):
        read_results(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "7", '"x"', "[" * 100000, "1" * 5000, "NaN", "{}", ""], ids=range(9))
def test_results_that_are_none(tmp_path, text):
    (tmp_path / RESULTS).write_text(text)
    with pytest.raises(CoopError, match=r"results\.json: not"):
        read_results(tmp_path)


def test_results_of_later_and_earlier_versions_are_read(tmp_path):
    (tmp_path / RESULTS).write_text(json.dumps(RESULT))
    assert read_results(tmp_path)["of_a_later_version"] == {"a": 1}
    (tmp_path / RESULTS).write_text(json.dumps(changed(RESULT, "val/acc", ...)))
    assert read_results(tmp_path)["test/acc"] == 0.5


# Prompts


def parts(path: Path) -> tuple[dict, dict]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["coop"])  # noqa: SIM118


def rewrite(path: Path, tensors: dict, metadata, with_checksum: bool = True) -> None:
    text = json.dumps(metadata)
    if with_checksum and isinstance(metadata, dict):
        metadata = {key: value for key, value in metadata.items() if key != "crc32"}
        text = json.dumps(metadata | {"crc32": checksum(tensors, metadata)})
    save_file(tensors, path, metadata={"coop": text})


METADATA_WRONG = [
    ("classnames", "dog"), ("classnames", []), ("classnames", [1, 2, 3]), ("classnames", None), ("classnames", ...),
    ("method", "coop"), ("method", None), ("dataset", 7), ("backbone", None), ("backbone", ["tiny"]),
    ("pretrained", 5), ("precision", None), ("fingerprint", 1), ("fingerprint", ...), ("version", 2),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), METADATA_WRONG, ids=str)
def test_a_prompt_with_metadata_of_wrong_types(prompt_file, key, value):
    tensors, metadata = parts(prompt_file)
    rewrite(prompt_file, tensors, changed(metadata, key, value))
    with pytest.raises(CoopError, match=rf"prompt\.safetensors: not a prompt written by coop\.train: {key}"):
        load_prompt(prompt_file)


@pytest.mark.parametrize("metadata", [None, 7, "x", [], {}])
def test_a_prompt_without_metadata(prompt_file, metadata):
    rewrite(prompt_file, parts(prompt_file)[0], metadata)
    with pytest.raises(CoopError, match=r"prompt\.safetensors: not a prompt written by coop\.train"):
        load_prompt(prompt_file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_prompt_that_is_not_finite(prompt_file, value, dtype):
    tensors, metadata = parts(prompt_file)
    ctx = tensors["ctx"].to(dtype)
    ctx[2, 5] = value
    rewrite(prompt_file, {"ctx": ctx}, metadata)
    with pytest.raises(CoopError, match=r"prompt\.safetensors: ctx holds values that are not finite"):
        load_prompt(prompt_file)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.uint8])
def test_integers_in_a_prompt(small_clip, prompt_file, dtype):
    tensors, metadata = parts(prompt_file)
    rewrite(prompt_file, {"ctx": tensors["ctx"].to(dtype)}, metadata)
    with pytest.raises(CoopError, match=rf"prompt\.safetensors: ctx holds {dtype}, expected torch\.float32"):
        load_into(PromptLearner(small_clip, NAMES, n_ctx=4), load_prompt(prompt_file), prompt_file)


@pytest.mark.parametrize("state", [{}, {"other": torch.zeros(2)}, {"ctx": torch.zeros(())}, {"ctx": torch.zeros(4, 7)}])
def test_tensors_of_another_method(small_clip, prompt_file, state):
    rewrite(prompt_file, state, parts(prompt_file)[1])
    with pytest.raises(CoopError, match=r"prompt\.safetensors: does not fit this method"):
        load_into(PromptLearner(small_clip, NAMES, n_ctx=4), load_prompt(prompt_file), prompt_file)


def test_a_flipped_bit_anywhere_in_a_prompt_is_noticed(prompt_file):
    """Or it changes nothing that is read: a bit of the checksum's own name, or of the space behind the header."""
    whole, (tensors, metadata) = prompt_file.read_bytes(), parts(prompt_file)
    unnoticed = 0
    for bit in range(0, 8 * len(whole), 61):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        prompt_file.write_bytes(damaged)
        try:
            prompt = load_prompt(prompt_file)
        except CoopError:
            continue
        unnoticed += 1
        assert torch.equal(prompt.state["ctx"], tensors["ctx"])
        assert {key: prompt.metadata[key] for key in metadata if key != "crc32"} | {
            "crc32": metadata["crc32"]
        } == metadata
    assert unnoticed < 10


def test_a_prompt_of_an_earlier_version_has_no_checksum(prompt_file):
    tensors, metadata = parts(prompt_file)
    rewrite(prompt_file, tensors, metadata, with_checksum=False)
    assert torch.equal(load_prompt(prompt_file).state["ctx"], tensors["ctx"])


# Whose folder it is


def run_of(folder: Path, *overrides: str, **results) -> Path:
    claim_folder(folder, composed(*overrides))
    (folder / RESULTS).write_text(json.dumps(RESULT | results))
    return folder


@pytest.mark.parametrize("name", [RESULTS, "last.ckpt", PROMPT])
def test_files_without_a_config_are_nobodys(tmp_path, name):
    (tmp_path / name).write_text(json.dumps(RESULT))
    with pytest.raises(CoopError, match=rf"holds {name} without the config\.yaml that says what computed it"):
        claim_folder(tmp_path, composed())
    assert not (tmp_path / CONFIG).exists()


def test_a_config_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / CONFIG).write_text("my: settings\n")
    with pytest.raises(CoopError, match="not the config of a run"):
        claim_folder(tmp_path, composed())
    assert (tmp_path / CONFIG).read_text() == "my: settings\n"


def test_a_converted_prompt_is_not_a_finished_run(tmp_path):
    run_of(tmp_path, task="convert")
    claim_folder(tmp_path, composed())
    with pytest.raises(
        CoopError, match="holds a converted prompt, which training would overwrite; choose another hydra"
    ):
        read_finished(tmp_path)
    with pytest.raises(CoopError, match="holds a run with another config"):
        claim_folder(tmp_path, composed("seed=2"))


def test_an_evaluation_goes_where_it_overwrites_nothing_else(tmp_path):
    run, other = run_of(tmp_path / "run"), run_of(tmp_path / "other", "seed=2")
    for folder in (run, other):
        with pytest.raises(CoopError, match=r"holds a run, whose results would be overwritten; choose another hydra"):
            claim_for_evaluation(folder, run)
    out = tmp_path / "out"
    claim_for_evaluation(out, run)
    out.mkdir()
    (out / RESULTS).write_text(json.dumps(RESULT | {"task": "evaluate", "run": str(run), "targets": {}}))
    claim_for_evaluation(out, run)
    with pytest.raises(CoopError, match=r"holds the results of .*run, which would be overwritten"):
        claim_for_evaluation(out, other)
    (out / RESULTS).write_text(json.dumps(RESULT))
    with pytest.raises(CoopError, match=r"holds the results of another run"):
        claim_for_evaluation(out, run)


# Manifests


def manifest(path: Path, **changes) -> Path:
    content = {
        "format": "coop-manifest-1", "dataset": "mini", "shots": 1, "seed": 1, "classes": "all", "origin": "published",
        "classnames": ["a"], "train": [["a/1.jpg", 0, "a"]], "val": [], "test": [["a/9.jpg", 0, "a"]],
    }  # fmt: skip
    path.write_text(json.dumps(content | changes, indent=changes.pop("indent", None)))
    return path


def test_a_manifest_is_known_by_its_content(tmp_path):
    first = manifest(tmp_path / "first.json")
    copy = Path(shutil.copy(first, tmp_path / "copy.json"))
    other = manifest(tmp_path / "other.json", train=[["a/2.jpg", 0, "a"]])
    run = tmp_path / "run"
    run_of(run, f"dataset.manifest={first}")
    assert load_config(run).dataset.manifest_sha256 == manifest_sha256(str(copy))
    claim_folder(run, composed(f"dataset.manifest={copy}"))
    for override in (f"dataset.manifest={other}", "dataset.manifest=null"):
        with pytest.raises(CoopError, match=r"another config.*\n  dataset\.manifest_sha256: "):
            claim_folder(run, composed(override))
    manifest(first, train=[["a/3.jpg", 0, "a"]])  # the same path, other images
    with pytest.raises(CoopError, match=r"dataset\.manifest_sha256"):
        claim_folder(run, composed(f"dataset.manifest={first}"))


def test_the_epochs_rule_that_earlier_versions_wrote_out_is_the_same_setting(tmp_path):
    config = plain() | {"epochs_by_shots": {1: 50, 4: 100, 16: 200}}
    run = write_config(tmp_path, config)
    (run / PROMPT).touch()
    before = decisive(OmegaConf.to_container(load_config(run)))
    assert differing(before, decisive(plain())) == [] and before["epochs_by_shots.4"] == 100
    claim_folder(run, composed())
    with pytest.raises(CoopError, match=r"another config; .*\n  epochs_by_shots.1: 50 there, None here"):
        claim_folder(run, composed("epochs_by_shots={4: 100, 16: 200}"))


def test_a_folder_of_an_earlier_version_knows_a_manifest_by_its_path(tmp_path):
    first, second = manifest(tmp_path / "first.json"), manifest(tmp_path / "second.json")
    run = run_of(tmp_path / "run", f"dataset.manifest={first}")
    write_config(run, changed(OmegaConf.to_container(load_config(run)), "dataset.manifest_sha256", ...))
    with pytest.raises(CoopError, match=r"dataset\.manifest: .*first\.json there, .*second\.json here"):
        claim_folder(run, composed(f"dataset.manifest={second}"))
    claim_folder(run, composed(f"dataset.manifest={first}"))
    check_dataset(load_config(run).dataset)


def test_a_manifest_cannot_reach_beyond_its_data_set(tmp_path):
    from coop.data.manifest import apply_manifest

    whole = read_dataset(composed().dataset, None)
    for path in ("/etc/passwd", "../../../etc/passwd"):
        rows = [[path, 0, whole.classnames[0]]]
        file = manifest(tmp_path / "evil.json", classnames=whole.classnames, train=rows, test=rows)
        with pytest.raises(CoopError, match="images are not in this data set"):
            apply_manifest(whole, str(file), shots=1)


# Checkpoints


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    content = {
        "pytorch-lightning_version": "2.6.6", "epoch": 1, "global_step": 8, "loops": {}, "callbacks": {},
        "optimizer_states": [{"state": {}, "param_groups": [{}]}], "lr_schedulers": [{}],
        "state_dict": {"method.ctx": torch.zeros(4, 8)}, RUN: decisive(recorded(composed())),
    }  # fmt: skip
    torch.save(content, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def same() -> dict:
    return decisive(recorded(composed()))


def test_a_checkpoint_of_this_run_is_read(checkpoint):
    assert read_checkpoint(checkpoint, same())["epoch"] == 1
    content = torch.load(checkpoint, weights_only=True)
    del content[RUN]  # of an earlier version
    torch.save(content, checkpoint)
    assert read_checkpoint(checkpoint, same())["epoch"] == 1


def test_a_checkpoint_of_another_config_is_named(checkpoint):
    with pytest.raises(
        CoopError, match=r"last\.ckpt: .*another config; delete it to start this run anew\n  seed: 1 there, 2"
    ):
        read_checkpoint(checkpoint, decisive(recorded(composed("seed=2"))))


@pytest.mark.parametrize(
    ("key", "value"),
    [("epoch", "1"), ("epoch", ...), ("epoch", None), ("global_step", 1.5), ("state_dict", []), ("state_dict", ...),
     ("optimizer_states", {}), ("optimizer_states", [1]), ("lr_schedulers", None), ("loops", 7), ("callbacks", "x"),
     ("pytorch-lightning_version", 2), ("pytorch-lightning_version", ...), (RUN, "x")],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_of_another_program(checkpoint, key, value):
    content = torch.load(checkpoint, weights_only=True)
    content[key] = value
    if value is ...:
        del content[key]
    torch.save(content, checkpoint)
    with pytest.raises(CoopError, match=rf"last\.ckpt: not a checkpoint of coop\.train: {key}.*; delete it to start"):
        read_checkpoint(checkpoint, same())


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1], torch.zeros(2), 7, {}], ids=range(5))
def test_what_torch_saved_for_somebody_else(checkpoint, content):
    torch.save(content, checkpoint)
    with pytest.raises(CoopError, match=r"last\.ckpt: not a checkpoint of coop\.train.*; delete it to start"):
        read_checkpoint(checkpoint, same())


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 torn", b"\x80\x02K\x01."])
def test_a_checkpoint_that_is_no_archive(checkpoint, content):
    checkpoint.write_bytes(content)
    with pytest.raises(CoopError, match=r"last\.ckpt: not a readable checkpoint .*; delete it to start this run anew"):
        read_checkpoint(checkpoint, same())


def test_a_flipped_bit_in_a_checkpoints_tensors_is_noticed(checkpoint):
    with zipfile.ZipFile(checkpoint) as archive:
        ctx = archive.read(next(name for name in archive.namelist() if name.endswith("data/0")))
    whole = checkpoint.read_bytes()
    start = whole.index(ctx)
    for bit in range(0, 8 * len(ctx), 97):
        damaged = bytearray(whole)
        damaged[start + bit // 8] ^= 1 << bit % 8
        checkpoint.write_bytes(damaged)
        assert torch.load(checkpoint, weights_only=True)["epoch"] == 1, "torch itself does not notice"
        with pytest.raises(CoopError, match="not a readable checkpoint"):
            read_checkpoint(checkpoint, same())


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code from the file has run",))


def test_a_checkpoint_that_holds_code(checkpoint):
    torch.save({**torch.load(checkpoint, weights_only=True), "trap": Trap()}, checkpoint)
    with pytest.raises(CoopError, match=r"last\.ckpt: not a readable checkpoint .*code") as caught:
        read_checkpoint(checkpoint, same())
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [({}, r"method\.ctx has nothing, shape \(4, 8\) here"),
     ({"method.ctx": torch.zeros(5, 8)}, r"method\.ctx has shape \(5, 8\), shape \(4, 8\) here"),
     ({"method.ctx": torch.zeros(4, 8), "method.bias": torch.zeros(2)}, r"method\.bias has shape \(2,\), nothing here"),
     ({"method.ctx": "text"}, r"method\.ctx has nothing, shape \(4, 8\) here")],
    ids=range(4),
)  # fmt: skip
def test_a_checkpoint_of_another_method_or_shape(given, message):
    with pytest.raises(CoopError, match=rf"last\.ckpt: .*{message}; delete it to start this run anew"):
        check_fit({"method.ctx": torch.zeros(4, 8)}, given, "last.ckpt")


# Weights


def test_weights_that_are_not_numbers_are_named(tmp_path):
    from clip_folder import write_clip_folder
    from small_clip import small_clip

    model = small_clip()
    with torch.no_grad():
        model.visual.proj[0, 0] = float("nan")
    folder = write_clip_folder(tmp_path / "clip", model)
    with pytest.raises(CoopError, match=r"visual\.proj holds values that are not finite.*again"):
        FrozenCLIP.load(f"local-dir:{folder}")


def test_a_tokenizer_brings_no_code(tmp_path, monkeypatch):
    """transformers runs the code of a tokenizer's folder if it is told to trust it; the folder itself may not say so."""
    from clip_folder import write_clip_folder

    folder = write_clip_folder(tmp_path / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x/y", "tokenizer_kwargs": {"trust_remote_code": True}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("open_clip.factory.HFTokenizer", lambda *_, **__: pytest.fail("it was trusted"))
    with pytest.raises(CoopError, match=r"open_clip_config\.json.*trust_remote_code"):
        FrozenCLIP.load(f"local-dir:{folder}")


def test_a_program_as_weights_is_not_loaded_for_a_folder(run_folder, tmp_path, monkeypatch):
    """A TorchScript archive is a program, which may write files while it is loaded."""
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1)), tmp_path / "evil.pt")
    monkeypatch.setattr("torch.jit.load", lambda *_, **__: pytest.fail("it was loaded"))
    backbone = {"model": "ViT-B-32-quickgelu", "pretrained": str(tmp_path / "evil.pt")}
    write_config(run_folder, changed(plain(), "backbone", plain()["backbone"] | backbone))
    with pytest.raises(CoopError, match=r"config\.yaml: backbone\.pretrained=.*evil\.pt: .*TorchScript"):
        load_trained(run_folder, accelerator="cpu")


def test_an_old_datasets_library_is_refused(tmp_path, monkeypatch):
    """Before version 4 it ran scripts that lie beside the data."""
    from types import SimpleNamespace

    from coop.data.readers.huggingface import read_huggingface

    old = SimpleNamespace(__version__="2.14.0", load_dataset=lambda *_: pytest.fail("it was loaded"))
    monkeypatch.setitem(sys.modules, "datasets", old)
    (tmp_path / f"{tmp_path.name}.py").write_text("raise SystemExit('the script has run')\n")
    with pytest.raises(CoopError, match=r"may run scripts.*pip install 'datasets>=4'"):
        read_huggingface(None, path=str(tmp_path))


def test_a_csv_file_is_text(tmp_path):
    """Formulas, interpolations and paths to anywhere are names; what is no image is not opened as one."""
    from coop.data.images import open_image
    from coop.data.readers.table import read_csv

    rows = [("/etc/passwd", "=cmd|'/C calc'!A0"), ("../../../../etc/passwd", "${oc.env:HOME}")]
    lines = [f"{path},{label},{part}" for path, label in rows for part in ("train", "test")]
    (tmp_path / "evil.csv").write_text("path,label,split\n" + "\n".join(lines) + "\n")
    try:
        splits = read_csv(None, path=str(tmp_path / "evil.csv"))
    except CoopError:
        return
    assert splits.classnames == ["${oc.env:HOME}", "=cmd|'/C calc'!A0"]
    for item in splits.train:
        with pytest.raises(CoopError, match="not a readable image"):
            open_image(item.path)


def test_a_cache_of_features_of_others_is_tensors_only(tmp_path):
    """Anything but whole tensors of the right width is set aside; none of it is unpickled."""
    import numpy as np

    from coop.data.feature_cache import FeatureCache

    cache = FeatureCache(tmp_path, "key")
    identities = np.array([b"0123456789abcdef"], dtype="S16")
    cache.add(identities, torch.ones(1, 4))
    (shard,) = cache.folder.glob("*.safetensors")
    torch.save({"trap": Trap()}, shard)
    features = torch.zeros(1, 4)
    assert not FeatureCache(tmp_path, "key").lookup(identities, features).any()
    assert not features.any()


# Bare words and null where a list or a group is expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("shots=null", "shots=null: give 1 or more training images per class"),
        ("seed=null", "seed=null: expected a whole number, such as seed=1"),
        ("epochs=many", "epochs=many: expected a whole number or null"),
        ("targets=mini", "targets=mini: expected a list: targets=[mini]"),
        ("targets=null", "targets=null: expected a list: targets=[]"),
        ("logger.tags=abc", "logger.tags=abc: expected a list: logger.tags=[abc]"),
        ("optimizer=adam", "optimizer=adam: expected keys, such as optimizer.name=adam (keys: name, lr,"),
        ("optimizer=null", "optimizer=null: expected keys, such as optimizer.name=... (keys: name, lr,"),
        ("optimizer.lr=null", "optimizer.lr=null: expected a value, such as optimizer.lr=0.002"),
        ("trainer.tf32=maybe", "trainer.tf32=maybe: expected true or false, such as trainer.tf32=False"),
        ("method=null", "method=null: a group needs a choice: method=NAME; leave it out for the default"),
        ("dataset=null", "dataset=null: a group needs a choice: dataset=NAME"),
        ("backbone=null", "backbone=null: a group needs a choice: backbone=NAME"),
        ("logger=null", "logger=null: a group needs a choice: logger=NAME"),
        ("trainer=null", "trainer=null: a group needs a choice: trainer=NAME"),
    ],
)
def test_a_bare_word_or_null_names_the_fix(monkeypatch, word, message):
    from coop.cli.messages import explain

    monkeypatch.setattr(sys, "argv", ["train.py", word])
    with pytest.raises(Exception) as caught:
        check(configs.composed(word))
    assert explain(caught.value).startswith(message)


def test_a_link_in_a_folder_of_others_leads_nowhere(tmp_path):
    """Neither a lock nor a config is written through a symbolic link that came with the folder."""
    from coop.runs.sweep import exclusive

    mine, folder = tmp_path / "mine.txt", tmp_path / "run"
    mine.write_text("precious")
    folder.mkdir()
    (folder / ".lock").symlink_to(mine)
    try:
        with exclusive(folder):
            pass
    except (OSError, CoopError):
        pass
    assert mine.read_text() == "precious"
    (folder / "out.json").symlink_to(mine)
    write_json(folder / "out.json", {"a": 1})
    assert mine.read_text() == "precious"
    assert json.loads((folder / "out.json").read_text()) == {"a": 1}
