"""A finished run in Python: what it gives, and that it is what the command prints."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_run import write_run
from omegaconf import OmegaConf
from PIL import Image

import coop
from coop import CoopError, predict
from coop.data.readers.mini import read_mini
from coop.evaluation import images as predicting
from coop.methods.linear_probe import LinearProbe
from coop.runs.folder import CONFIG


@pytest.fixture(scope="module")
def folder(tiny_clip, tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", tiny_clip, "method.n_ctx=4", n_ctx=4)


@pytest.fixture(scope="module")
def run(folder):
    return coop.load_run(folder, accelerator="cpu")


@pytest.fixture(scope="module")
def photographs() -> list[str]:
    return [item.path for item in read_mini(None).test[:6]]


def test_predictions_are_those_of_the_command(run, folder, photographs, tmp_path):
    out = tmp_path / "p.json"
    assert predict.main([f"run={folder}", *photographs, "top=2", f"out={out}", "accelerator=cpu"]) == 0
    assert run.predict(photographs, top=2) == json.loads(out.read_text())


def test_files_pil_images_and_arrays_are_seen_alike(run, photographs):
    path = photographs[0]
    image = Image.open(path).convert("RGB")
    given = [path, Path(path), image, np.asarray(image)]
    seen = [prediction["classes"] for prediction in run.predict(given, top=3)]
    assert seen[0] == seen[1] == seen[2] == seen[3] and len(seen[0]) == 3
    for single in given:
        assert [c["classname"] for c in run.predict(single)[0]["classes"]] == [c["classname"] for c in seen[0]]
    assert sum(c["probability"] for c in seen[0]) == pytest.approx(1)
    batch = np.stack([np.asarray(image.resize((64, 64)))] * 2)
    assert [p["path"] for p in run.predict(batch)] == ["image 0", "image 1"]


def test_what_cannot_be_read_is_named_in_its_place(run, photographs, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(Path(photographs[0]).read_bytes()[:300])
    given = ["missing.jpg", photographs[0], tmp_path / "cut.jpg", np.zeros((4, 4, 3)), None, photographs[1]]
    *entries, last = run.predict(given)
    assert [("error" in entry, "classes" in entry) for entry in entries] == [
        (True, False), (False, True), (True, False), (True, False), (True, False)
    ]  # fmt: skip
    assert last["classes"] == run.predict(photographs[:2])[1]["classes"]
    for number, message in {
        0: "missing.jpg: the image file does not exist",
        2: "cut.jpg: not a readable image",
        3: "image 3: an array of float64 (4, 4, 3); expected a path, a PIL image, or an array of uint8",
        4: "image 4: a NoneType; expected a path",
    }.items():
        assert message in entries[number]["error"]


def test_no_classes_at_all_are_no_prediction(run, photographs):
    with pytest.raises(CoopError, match=r"^top=0: must be at least 1$"):
        run.predict(photographs[0], top=0)


def test_images_come_in_batches(run, photographs, monkeypatch):
    sizes = []
    encode = run.method.encode_image
    monkeypatch.setattr(run.method, "encode_image", lambda images: sizes.append(len(images)) or encode(images))
    monkeypatch.setattr(predicting, "BATCH_SIZE", 4)
    assert len(run.predict(photographs, top=1)) == 6 and sizes == [4, 2]


def test_mixed_precision_is_that_of_the_evaluation(tiny_clip, tmp_path, photographs):
    """`coop.evaluate` encodes and classifies under the run's precision, and so do predictions."""
    run = coop.load_run(
        write_run(tmp_path / "run", tiny_clip, "trainer.precision=bf16-mixed", "method.n_ctx=4", n_ctx=4), "cpu"
    )
    seen = []
    encode = run.method.encode_image
    run.method.encode_image = lambda images: seen.append(torch.is_autocast_enabled("cpu")) or encode(images)
    run.predict(photographs[:1])
    assert seen == [True]


def test_text_features_are_the_class_weights(run, photographs):
    assert run.text_features.shape == (3, run.method.clip.embed_dim) and run.text_features.device.type == "cpu"
    torch.testing.assert_close(run.text_features.norm(dim=1), torch.ones(3))
    image = predicting.test_transform(run.method.clip.preprocess_cfg)(Image.open(photographs[0]).convert("RGB"))
    logits = run.method.logit_scale.exp() * run.method.encode_image(image[None]) @ run.text_features.T
    best = run.predict(photographs[0], top=1)[0]["classes"][0]
    assert best["classname"] == run.classnames[logits.argmax()]
    assert best["probability"] == pytest.approx(logits.softmax(1).max().item(), abs=1e-6)


def test_a_method_without_text_features_says_so(tiny_clip, tmp_path):
    run = coop.load_run(write_run(tmp_path / "run", tiny_clip, "method=linear_probe", method=LinearProbe), "cpu")
    with pytest.raises(CoopError, match="method=linear_probe: has no text features of its classes, but none"):
        run.text_features  # noqa: B018


def test_its_picture_in_a_notebook(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "<i>run"))
    run = coop.load_run(copy)
    assert run.results["test/acc"] == 0.5 and run.classnames == ["ibis", "grey cat", "<b>ewer</b>"]
    html = run._repr_html_()
    for text in ("coop on mini, 4 shots, seed 1, tiny", "mini: zero-shot", "40.00", "37.50", "50.00", "25.00"):
        assert text in html
    assert "&lt;i&gt;run" in html and "<i>" not in html and "<img" not in html
    (copy / "history.png").write_bytes(b"picture")
    assert "data:image/png;base64,cGljdHVyZQ==" in run._repr_html_()
    assert repr(run) == f"<coop run {copy}: coop on mini, 4 shots, seed 1, tiny>"
    assert "_trained" not in vars(run), "no backbone is loaded for a picture"


def test_what_is_no_run(tmp_path):
    with pytest.raises(CoopError, match=r"prompt.safetensors: no such file; `run=` takes the folder of a finished run"):
        coop.load_run(tmp_path)


def test_the_bundled_clip_is_this_installations(folder, tmp_path):
    """A folder that comes from another machine names the bundled CLIP where it lies there."""
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    cfg = OmegaConf.load(copy / CONFIG)
    for elsewhere in ("/home/ann/site-packages/coop/assets/tiny_clip", r"C:\ann\coop\assets\tiny_clip"):
        cfg.backbone.model = f"local-dir:{elsewhere}"
        OmegaConf.save(cfg, copy / CONFIG)
        assert coop.load_run(copy, "cpu").method.clip.name == "tiny"
    cfg.backbone.model = "local-dir:/home/ann/my_clip"
    OmegaConf.save(cfg, copy / CONFIG)
    with pytest.raises(CoopError, match=r"/home/ann/my_clip: no open_clip_config.json there"):
        coop.load_run(copy, "cpu").method  # noqa: B018
