"""What can be done with a finished run: predict, export, interpret; and a prompt of the original code as a run."""

import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from clip_folder import write_clip_folder
from methods import quick
from omegaconf import OmegaConf
from safetensors.torch import load_file, safe_open

from coop.convert import load_config, read_original, trained_classes
from coop.data.image_files import find_images
from coop.data.images import open_image
from coop.data.transforms import test_transform as make_test_transform
from coop.errors import CoopError
from coop.export import USAGE, require_onnx, write_onnx
from coop.runs.trained import load_trained

pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture(scope="module")
def by_method(run, small, work) -> dict[str, Path]:
    """A finished run of each method that is asked for."""
    options = {"cocoop": ["method.condition=noise"], "plot": ["method.max_iter=4"]}

    class Finished(dict):
        def __missing__(self, method: str) -> Path:
            folder = self[method] = work / f"finished_{method}"
            given = [*small, "batch_size=10", *quick(method), *options.get(method, [])]
            done = run("train", *given, "epochs=1", f"hydra.run.dir={folder}")
            assert done.code == 0, done.err
            return folder

    return Finished()


def images_of(photographs: Path) -> list[Path]:
    return sorted((photographs / "test").rglob("*.jpg"))


@pytest.mark.parametrize("kind", ["coop", "cocoop", "plot", "maple", "clip_lora", "two_stage"])
def test_predict_equals_evaluation(run, finished, by_method, photographs, kind):
    """Top-1 over the test folder is the run's test accuracy."""
    finished = finished if kind == "coop" else by_method[kind]
    done = run("predict", f"run={finished}", str(photographs / "test"), "json=true", "top=2", "accelerator=cpu")
    assert done.code == 0, done.err
    predictions = json.loads(done.out)
    assert [Path(p["path"]) for p in predictions] == images_of(photographs)
    right = sum(p["classes"][0]["classname"] == Path(p["path"]).parent.name.replace("_", " ") for p in predictions)
    results = json.loads((finished / "results.json").read_text())
    assert right / len(predictions) == pytest.approx(results["test/acc"], abs=1e-6)
    for prediction in predictions:
        first, second = (c["probability"] for c in prediction["classes"])
        assert 1 >= first >= second >= 0


def test_predict_goes_on_after_what_cannot_be_read(run, finished, photographs, tmp_path):
    """A truncated image, a pipe, links, names of other encodings, a missing file: named, in order, the others go on."""
    good, folder = images_of(photographs)[0], tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(good.read_bytes()[:300])
    os.mkfifo(folder / "b.jpg")
    (folder / "c.jpg").symlink_to("nowhere.jpg")
    shutil.copy(good, folder / "d.jpg")
    shutil.copy(good, os.fsencode(folder) + b"/\xe9.jpg")
    (folder / "inner" / "loop").symlink_to(folder)
    (folder / "inner" / "self").symlink_to("self")
    shutil.copy(good, folder / "inner" / "e.jpg")
    words = [str(folder), "missing.jpg", str(good), f"out={tmp_path / 'p.json'}", "top=1000"]
    done = run("predict", f"run={finished}", *words)
    assert done.code == 1 and "Traceback" not in done.err
    entries = json.loads((tmp_path / "p.json").read_text())
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "\\xe9.jpg", "inner/e.jpg"]
    assert [e["path"] for e in entries] == [*(f"{folder}/{name}" for name in names), "missing.jpg", str(good)]
    errors = ["truncated", "a pipe", "is a link to a file that does not exist", None, None, None, "no such image", None]
    for entry, error in zip(entries, errors, strict=True):
        assert ("classes" in entry) != ("error" in entry)
        assert error in entry["error"] and f"error: {entry['error']}" in done.err if error else "classes" in entry
    assert len(entries[3]["classes"]) == 5 and entries[3]["classes"] == entries[4]["classes"] == entries[7]["classes"]
    assert "4 of 8 images could not be read" in done.err
    assert "xe9.jpg" in done.out.replace("\n", "") and "missing.jpg" not in done.out
    assert json.loads(run("predict", f"run={finished}", *words, "json=true").out) == entries


def test_predict_goes_into_links_and_folders_that_a_pattern_means(run, finished, photographs, tmp_path):
    shutil.copytree(photographs / "test", tmp_path / "x")
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    (tmp_path / "y").symlink_to(photographs / "test")
    # x, y, and y by way of the link
    for pattern, times in ((f"{tmp_path}/**/*.jpg", 1), (f"{tmp_path}/**", 3), (f"{tmp_path}/[y]", 1)):
        found = list(find_images([pattern]))
        assert len(found) == len(set(found)) == times * len(images_of(photographs)), pattern


def test_predict_takes_patterns(run, finished, photographs):
    done = run("predict", f"run={finished}", str(photographs / "test" / "*" / "*.jpg"), "json=true")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)) == len(images_of(photographs))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.jpg"], "nothing.jpg: no such image"),
        ([], "give images"),
        (["x.jpg", "tpo=3"], "tpo=3: there is no such option; options are run=, top="),
        (["x.jpg", "top=0"], "top=0: must be at least 1"),
        (["x.jpg", "top=many"], "top=many: must be int"),
    ],
)
def test_predict_says_what_is_wrong(run, finished, words, message):
    done = run("predict", f"run={finished}", *words)
    assert done.code == 1
    assert f"error: {message}" in done.err and "Traceback" not in done.err


def test_class_weights_alone_give_the_runs_logits(run, finished, photographs, tmp_path):
    done = run("export", f"run={finished}", f"out={tmp_path}")
    assert done.code == 0, done.err
    tensors = load_file(tmp_path / "class_weights.safetensors")
    with safe_open(tmp_path / "class_weights.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["coop"])
    method = load_trained(finished, accelerator="cpu").method
    assert about["classnames"] == method.classnames
    assert tuple(tensors["text_features"].shape) == (5, method.clip.embed_dim)
    images = prepared(method, images_of(photographs)[:3])
    with torch.no_grad():
        features = method.encode_image(images)
        logits = tensors["logit_scale"].exp() * features @ tensors["text_features"].T
        torch.testing.assert_close(logits, method.logits(features), atol=1e-5, rtol=1e-5)


def prepared(method, paths) -> torch.Tensor:
    transform = make_test_transform(method.clip.preprocess_cfg)
    return torch.stack([transform(open_image(str(path))) for path in paths])


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind",
    ["maple"]  # CoOp on a CoCa is below
    + [
        pytest.param(kind, marks=SLOW)
        for kind in (
            *("coop", "tip_adapter", "clip_lora", "dept", "plot", "linear_probe", "clip_adapter", "lp_pp"),
            *("cross_modal_partial", "vpt", "two_stage"),
        )
    ],
)
def test_onnx_predicts_as_we_do(run, finished, by_method, photographs, tmp_path, kind):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = finished if kind == "coop" else by_method[kind]
    done = run("export", f"run={folder}", f"out={tmp_path}", "onnx=true")
    assert done.code == 0, done.err
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    method = load_trained(folder, accelerator="cpu").method
    for paths in (images_of(photographs)[:1], images_of(photographs)[:5]):
        images = prepared(method, paths)
        with torch.no_grad():
            ours = method.logits(method.encode_image(images))
        (theirs,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-4)
    about = json.loads(session.get_modelmeta().custom_metadata_map["coop"])
    assert about["classnames"] == method.classnames


def test_class_weights_of_low_rank_weights_in_the_text_encoder(run, small, photographs, tmp_path):
    """They have a temperature of their own."""
    options = [*quick("clip_lora"), "method.encoder=text", "method.scale=30", "optimizer.lr=0.1", "epochs=1"]
    done = run("train", *small, *options, f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    assert run("export", f"run={tmp_path}").code == 0
    tensors = load_file(tmp_path / "class_weights.safetensors")
    assert tensors["logit_scale"].exp().item() == pytest.approx(30)
    method = load_trained(tmp_path, accelerator="cpu").method
    with torch.no_grad():
        features = method.encode_image(prepared(method, images_of(photographs)[:3]))
        logits = tensors["logit_scale"].exp() * features @ tensors["text_features"].T
        torch.testing.assert_close(logits, method.logits(features), atol=1e-5, rtol=1e-5)
    untrained = method.clip.encode_text([f"a photo of a {name}." for name in method.classnames])
    assert (untrained - tensors["text_features"]).abs().max() > 0.01


def test_onnx_of_a_fixed_batch_is_no_success(finished, tmp_path):
    pytest.importorskip("onnxscript")
    method = load_trained(finished, accelerator="cpu").method
    logits = method.logits
    method.logits = lambda features: logits(features).expand(len(features), -1)
    with pytest.raises(CoopError, match="fixes the number of images in a batch"):
        write_onnx(method, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("method", ["linear_probe", "plot"])
def test_what_has_no_class_weights_says_so(run, by_method, method):
    done = run("export", f"run={by_method[method]}")
    assert done.code == 1
    assert "does not classify by class weights" in done.err and "onnx=true" in done.err


@pytest.mark.parametrize("onnx", ["true", "false"])
def test_text_features_of_each_image_are_not_exported(run, by_method, onnx, tmp_path):
    done = run("export", f"run={by_method['cocoop']}", f"out={tmp_path}", f"onnx={onnx}")
    assert done.code == 1
    assert "CoCoOp: has text features of its own for each image" in done.err
    assert "python -m coop.predict" in done.err
    assert not list(tmp_path.iterdir())


def test_words_near_the_vectors_of_several_prompts(by_method):
    words = json.loads((by_method["plot"] / "words.json").read_text())["vectors"]
    assert [(v["prompt"], v["vector"]) for v in words] == [(n, m) for n in (1, 2, 3, 4) for m in range(1, 17)]


def test_interpret_writes_what_it_shows(run, finished, tmp_path):
    done = run(
        "interpret", f"run={finished}", "top=3", "only_words=true", "metric=cosine", f"out={tmp_path / 'w.json'}"
    )
    assert done.code == 0, done.err
    contents = json.loads((tmp_path / "w.json").read_text())
    assert contents["metric"] == "cosine" and len(contents["vectors"]) == 16
    for vector in contents["vectors"]:
        similarities = [word["distance"] for word in vector["words"]]
        assert len(similarities) == 3 and similarities == sorted(similarities, reverse=True)
        assert vector["words"][0]["word"] in done.out


def test_interpret_refuses_what_has_no_context(run, by_method):
    done = run("interpret", f"run={by_method['linear_probe']}")
    assert done.code == 1 and "has no context vectors" in done.err


class Scheduler:
    """Stands for what the original code pickles beside the tensors; unpickling it would run code."""

    def __reduce__(self):
        return (print, ("CODE FROM THE FILE HAS RUN",))


def original_checkpoint(finished: Path, path: Path, **changes) -> Path:
    """A file as the original code writes it, of the prompt that a run of ours has learned."""
    method = load_trained(finished, accelerator="cpu").method
    clip, m = method.clip, method.n_ctx
    prompts = [f"{' '.join(['X'] * m)} {name}." for name in method.classnames]
    with torch.no_grad():
        embeddings = clip.token_embedding(clip.tokenize(prompts))
    state = {"ctx": method.ctx.detach(), "token_prefix": embeddings[:, :1], "token_suffix": embeddings[:, 1 + m :]}
    optimizer = torch.optim.SGD([method.ctx], lr=0.002)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    content = {
        "state_dict": state | changes,
        "epoch": 50,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": schedule, "evil": Scheduler()},
        "val_result": None,
    }
    torch.save(content, path)
    return path


def trained_on(finished: Path) -> list[str]:
    """The overrides of the finished run, without those that do not concern a prompt."""
    cfg = OmegaConf.load(finished / "config.yaml")
    return [
        "backbone=open_clip", f"backbone.model={cfg.backbone.model}", "dataset=folder",
        f"dataset.path={cfg.dataset.path}", f"shots={cfg.shots}", f"seed={cfg.seed}",
    ]  # fmt: skip


def test_a_prompt_of_the_original_code_is_evaluated_as_ours(run, finished, tmp_path):
    checkpoint = original_checkpoint(finished, tmp_path / "model.pth.tar-50")
    done = run("convert", str(checkpoint), f"out={tmp_path / 'run'}", *trained_on(finished))
    assert done.code == 0, done.err
    assert "CODE FROM THE FILE HAS RUN" not in done.out + done.err
    ours = json.loads((finished / "results.json").read_text())
    again = run("evaluate", f"run={tmp_path / 'run'}", "num_workers=0", f"hydra.run.dir={tmp_path / 'out'}")
    assert again.code == 0, again.err
    entry = json.loads((tmp_path / "out" / "results.json").read_text())["targets"]["folder"]
    assert entry["test/acc"] == pytest.approx(ours["test/acc"], abs=1e-6)


def test_a_prompt_of_other_classes_or_another_kind_is_refused(run, finished, tmp_path):
    good = original_checkpoint(finished, tmp_path / "good")
    rotated = read_original(good).suffix.roll(1, dims=0)
    cases = {
        "rotated": (original_checkpoint(finished, tmp_path / "rotated", token_suffix=rotated), "class names differ"),
        "fewer": (original_checkpoint(finished, tmp_path / "fewer", token_suffix=rotated[:3]), "trained on 3 classes"),
        "image": (Path(shutil.copy(finished / "history.png", tmp_path / "image")), "not a prompt of the original"),
        "code": (tmp_path / "code", "with Python objects that could run code"),
        "absent": (tmp_path / "absent", "no such file"),
    }
    torch.save({"state_dict": {"ctx": partial(print, "CODE FROM THE FILE HAS RUN")}}, tmp_path / "code")
    for name, (path, message) in cases.items():
        done = run("convert", str(path), f"out={tmp_path / f'run_{name}'}", *trained_on(finished))
        assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err
        assert not (tmp_path / f"run_{name}").exists()
    done = run("convert", str(good), "out=there", *trained_on(finished)[:-1])
    assert done.code == 1 and "seed= is missing" in done.err


def test_convert_needs_no_photographs(run, finished, tmp_path):
    """Class names from a file, from the config, or from a list that comes with the package."""
    checkpoint = original_checkpoint(finished, tmp_path / "model.pth.tar-50")
    names = load_trained(finished, accelerator="cpu").method.classnames
    model = trained_on(finished)[:2]
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    by_folder = ",".join(f"{index}: '{name}'" for index, name in enumerate(names))
    ways = {
        "file": ["dataset=folder", f"classnames={tmp_path / 'names.txt'}"],
        "caltech": ["dataset=caltech101", f"classnames={tmp_path / 'names.txt'}", "data_root=nowhere"],
        "config": ["dataset=folder", "dataset.path=nowhere", f"dataset.classnames={{{by_folder}}}"],
    }
    for way, words in ways.items():
        done = run("convert", str(checkpoint), f"out={tmp_path / way}", *model, *words, "shots=4", "seed=1")
        assert done.code == 0, done.err
        assert load_trained(tmp_path / way, accelerator="cpu").method.classnames == names
    for words, message in {
        ("dataset=folder",): "No images are needed with classnames=FILE",
        ("dataset=folder", "classnames=absent.txt"): "classnames=absent.txt: No such file or directory",
        ("dataset=food101",): "needs data_root=DIR",
    }.items():
        done = run("convert", str(checkpoint), f"out={tmp_path / 'no'}", *model, *words, "shots=4", "seed=1")
        assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err
        assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("words", "count", "first"),
    [
        (["dataset=caltech101"], 100, "face"),
        (["dataset=caltech101", "dataset.classes=new"], 50, None),
        (["dataset=eurosat", "data_root=/nowhere"], 10, "Annual Crop Land"),
        (["dataset=imagenet"], 1000, "tench"),
        (["dataset=imagenet_r"], 200, "goldfish"),
        (["dataset=mini"], 25, None),
    ],
    ids=str,
)
def test_class_names_are_known_without_photographs(words, count, first):
    cfg = load_config([*words, "backbone=tiny"], torch.zeros(4, 8))
    classes = trained_classes(cfg, None)
    assert len(classes.classnames) == count and classes.origin == "published"
    assert first in (None, classes.classnames[0])


def test_names_may_have_wnids_in_front(tmp_path):
    (tmp_path / "classnames.txt").write_text("n01440764 tench\nn01443537 goldfish\n\n")
    cfg = load_config(["dataset=imagenet"], torch.zeros(4, 8))
    assert trained_classes(cfg, tmp_path / "classnames.txt").classnames == ["tench", "goldfish"]
    (tmp_path / "classnames.txt").write_text("\n")
    with pytest.raises(CoopError, match=r"classnames.txt: holds no class names; expected one a line"):
        trained_classes(cfg, tmp_path / "classnames.txt")


COCA = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16,
                   "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1, "embed_cls": True,
                 "output_tokens": True},
    "multimodal_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1,
                       "attn_pooler_heads": 4},
}  # fmt: skip


@pytest.mark.parametrize("method", ["coop", pytest.param("image_encoder", marks=SLOW)])
def test_a_coca_is_exported(run, small, photographs, tmp_path, method):
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    coca = open_clip.CoCa(**COCA)
    torch.nn.init.normal_(coca.text_decoder.text_projection, std=0.02)  # open_clip leaves what was in memory
    folder = write_clip_folder(tmp_path / "coca", coca, config={**COCA, "custom_text": True})
    options = [*small[2:], "backbone=open_clip", f"backbone.model=local-dir:{folder}", "method.n_ctx=4"]
    options = [word for word in options if method == "coop" or "n_ctx" not in word] + [f"method={method}"]
    done = run("train", *options, "epochs=1", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    done = run("export", f"run={tmp_path / 'run'}", "onnx=true")
    assert done.code == 0, done.err
    trained = load_trained(tmp_path / "run", accelerator="cpu").method
    images = prepared(trained, images_of(photographs)[:5])
    with torch.no_grad():
        ours = trained.logits(trained.encode_image(images))
    (theirs,) = runtime.InferenceSession(str(tmp_path / "run" / "model.onnx")).run(None, {"images": images.numpy()})
    np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-4)


def test_the_hint_names_the_package_as_it_is_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CoopError, match=r"pip install 'coop-clip\[onnx\]'"):
        require_onnx()
    assert "'coop-clip[onnx]'" in USAGE


def test_what_onnx_cannot_express_ends_in_one_message(finished, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    method = load_trained(finished, accelerator="cpu").method

    class Odd(torch.nn.Module):
        def forward(self, images):
            return torch.from_numpy(images.numpy())

    method.clip.model.visual = Odd()
    with pytest.raises(CoopError, match=r"onnx=true: torch cannot write the image tower of .* as ONNX"):
        write_onnx(method, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_folder_without_permission_is_named_and_the_others_go_on(photographs, monkeypatch):
    """As the system answers a user: the superuser, who may run the tests, may read everything."""
    closed = str(photographs / "test" / "airplane")
    scandir = os.scandir

    def refuse(path):
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(find_images([str(photographs / "test")]))
    assert [each for each in found if each[1]] == [(closed, f"{closed}: Permission denied")]
    assert len(found) == 1 + len([path for path in images_of(photographs) if path.parent.name != "airplane"])
