"""What can be done with a finished run: predict, export, interpret; and a prompt of the original code as a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from methods import quick
from omegaconf import OmegaConf
from safetensors.torch import load_file, safe_open

from coop.convert import read_original
from coop.data.images import open_image
from coop.data.transforms import test_transform as make_test_transform
from coop.trained import load_trained


@pytest.fixture(scope="module")
def by_method(run, small, work) -> dict[str, Path]:
    """A finished run of methods of different kinds."""
    folders = {}
    for method in ("linear_probe", "tip_adapter", "clip_adapter", "lp_pp", "cross_modal_adapter"):
        folders[method] = work / f"finished_{method}"
        done = run("train", *small, *quick(method), f"hydra.run.dir={folders[method]}")
        assert done.code == 0, done.err
    return folders


def images_of(photographs: Path) -> list[Path]:
    return sorted((photographs / "test").rglob("*.jpg"))


def test_predict_equals_evaluation(run, finished, photographs):
    """Top-1 over the test folder is the run's test accuracy."""
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


def test_predict_goes_on_after_an_unreadable_image(run, finished, photographs, tmp_path):
    good, bad = images_of(photographs)[0], tmp_path / "broken.jpg"
    bad.write_bytes(good.read_bytes()[:300])
    done = run("predict", f"run={finished}", str(bad), str(good), f"out={tmp_path / 'p.json'}")
    assert done.code == 1
    assert str(bad) in done.err and "1 of 2 images could not be read" in done.err and "Traceback" not in done.err
    assert [p["path"] for p in json.loads((tmp_path / "p.json").read_text())] == [str(good)]
    assert good.name in done.out.replace("\n", "")


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
        (["x.jpg", "top=many"], "top: Value 'many'"),
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
    [
        "coop", "tip_adapter",
        *(pytest.param(name, marks=SLOW) for name in ("linear_probe", "clip_adapter", "lp_pp", "cross_modal_adapter")),
    ],
)  # fmt: skip
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


def test_what_has_no_class_weights_says_so(run, by_method):
    done = run("export", f"run={by_method['linear_probe']}")
    assert done.code == 1
    assert "does not classify by class weights" in done.err and "onnx=true" in done.err


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
        "absent": (tmp_path / "absent", "no such file"),
    }
    for name, (path, message) in cases.items():
        done = run("convert", str(path), f"out={tmp_path / f'run_{name}'}", *trained_on(finished))
        assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err
        assert not (tmp_path / f"run_{name}").exists()
    done = run("convert", str(good), "out=there", *trained_on(finished)[:-1])
    assert done.code == 1 and "seed= is missing" in done.err
