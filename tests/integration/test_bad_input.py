"""Mistakes end in one message and a non-zero exit code, without a traceback and before minutes are spent."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("plain")

LATIN_1 = os.fsdecode(b"caf\xe9")
MINI_SPLIT = "split_zhou_Caltech101.json"


@pytest.fixture
def refuse(run, small, tmp_path):
    """Run a command that must fail; gives its one message."""

    def refused(*overrides: str) -> str:
        given = {override.split("=")[0] for override in overrides}
        base = [override for override in small if override.split("=")[0] not in given]
        if "dataset" in given:
            base = [override for override in base if override.split("=")[0] != "dataset.path"]
        if "backbone" in given:
            base = [override for override in base if override.split("=")[0] != "backbone.model"]
        done = run("train", *base, *overrides, f"hydra.run.dir={tmp_path / 'run'}")
        assert done.code == 1
        assert not (tmp_path / "run" / "results.json").exists()
        return done.error

    return refused


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["shots=-3"], ["shots=-3"]),
        (
            ["+exp=few_shot_curve"],
            ["+exp=few_shot_curve: a study of several runs (give seed=...", "; add -m to run all"],
        ),
        (["shot=3"], ["did you mean shots"]),
        (["method.n_ctx=0"], ["method.n_ctx=0"]),
        (["dataset=caltech"], ["near matches: caltech101"]),
        (["backbone=ViT-B/16"], ["backbone=ViT-B/16: there is no such backbone; near matches: vit_b16"]),
        (["dataset=caltech101"], ["data_root=DIR", "101_ObjectCategories"]),
        (["dataset=caltech101", "data_root=/nowhere"], ["data_root=/nowhere", "does not exist"]),
        (["dataset=imagenet", "data_root=/nowhere"], ["data_root=/nowhere", "does not exist"]),
        (["dataset.path=/nowhere"], ["/nowhere", "does not exist"]),
        (["dataset=mini_blur"], ["dataset=mini_blur", "no training images", "coop.evaluate"]),
        (["method.n_ctx=80"], ["80 of them context vectors", "takes 77", "lower method.n_ctx"]),
        (["backbone=open_clip", "backbone.model=ViT-B-16", "backbone.pretrained=openai"], ["ViT-B-16-quickgelu"]),
        (["backbone=vit_b16"], ["ViT-B-16-quickgelu (openai)", "not on this machine", "hf download", "backbone=tiny"]),
        (["dataset.manifest=/nowhere/m.json"], ["dataset.manifest=/nowhere/m.json", "coop.data export"]),
        (["dataset.path=/größe/it's, [here] 😀"], ["/größe/it's, [here] 😀", "does not exist"]),
        (["trainer.accelerator=abacus"], ["abacus"]),
        (["trainer.strategy=magic"], ["magic"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_one_message(refuse, overrides, parts):
    said = refuse(*overrides)
    assert all(part in said for part in parts), said


def test_a_template_that_zero_shot_cannot_use_is_found_before_training(run, small, tmp_path):
    """A prompt of 77 tokens and more: the run would be lost when zero-shot's turn comes after training."""
    done = run("train", *small, f"dataset.template='{'very ' * 90}{{}}'", f"hydra.run.dir={tmp_path}")
    assert done.code == 1
    assert "tokens" in done.error
    assert "step/s" not in done.err, "it was trained first"


def test_a_long_name_with_underscores_is_counted_as_it_is_used(run, small, photographs, tmp_path):
    """60 words are 60 tokens; the underscores between them, which nothing ever encodes, would be 59 more."""
    copy = Path(shutil.copytree(photographs, tmp_path / "photographs"))
    for part in copy.iterdir():
        sorted(part.iterdir())[0].rename(part / "_".join(["ox"] * 60))
    done = run(
        "train", *small, f"dataset.path={copy}", "method.n_ctx=4", "epochs=1", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert done.code == 0, done.err


def test_as_a_user_starts_it(run, tmp_path):
    """Through the interpreter: exit code and stderr of the real command, with and without HYDRA_FULL_ERROR."""
    done = run.interpreter("-m", "coop.train", "shots=0", f"hydra.run.dir={tmp_path}")
    assert done.code == 1
    assert done.error.startswith("shots=0: ") and "-1 for all" in done.error
    assert done.out == ""


def test_the_traceback_is_there_for_who_wants_it(run, tmp_path):
    done = run("train", "method.n_ctx=0", f"hydra.run.dir={tmp_path}", HYDRA_FULL_ERROR="1")
    assert done.code == 1
    assert "Traceback" in done.err
    assert "method.n_ctx=0" in done.err


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_truncated_photograph_is_named(refuse, photographs, tmp_path, part):
    copy = Path(shutil.copytree(photographs, tmp_path / "photographs"))
    folder = sorted((copy / part).iterdir())[1]
    path = sorted(folder.iterdir())[0]
    path.write_bytes(path.read_bytes()[:1500])
    augmentation = "online" if part == "train" else "none"
    said = refuse(f"dataset.path={copy}", f"augmentation={augmentation}", "num_workers=2", "shots=-1")
    assert said.startswith(f"{path}: not a readable image")
    assert "copy or download it again" in said
    assert "worker" not in said


def test_a_split_file_that_names_images_that_are_not_there(refuse, photographs, tmp_path):
    images = tmp_path / "caltech-101" / "101_ObjectCategories"
    images.mkdir(parents=True)
    rows = {"train": [], "val": [], "test": []}
    for label, folder in enumerate(sorted((photographs / "train").iterdir())):
        shutil.copytree(folder, images / folder.name)
        for number, path in enumerate(sorted(folder.iterdir())):
            rows[("train", "val", "test")[number % 3]].append([f"{folder.name}/{path.name}", label, folder.name])
    rows["train"] += [[f"gone/{number}.jpg", 0, rows["train"][0][2]] for number in range(7)]
    (tmp_path / "caltech-101" / MINI_SPLIT).write_text(json.dumps(rows))
    said = refuse("dataset=caltech101", f"data_root={tmp_path}")
    assert "7 of the 37 images" in said
    assert "gone/0.jpg" in said
    assert "and 2 more" in said
    assert MINI_SPLIT in said


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["cat"], ["has 1 class", "at least 2"]),
        (["sea_lion", "Sea lion"], ["'Sea lion' and 'sea_lion'", "Rename one of each"]),
        ([LATIN_1, "bar"], ["caf\\xe9", "Rename"]),
    ],
    ids=["one class", "one name", "not UTF-8"],
)
def test_classes_that_nothing_can_tell_apart(refuse, photographs, tmp_path, names, parts):
    folders = sorted((photographs / "train").iterdir())
    for name, folder in zip(names, folders, strict=False):
        shutil.copytree(folder, tmp_path / "own" / name)
    said = refuse(f"dataset.path={tmp_path / 'own'}")
    assert all(part in said for part in parts), said


def test_what_people_call_their_folders(run, small, photographs, tmp_path):
    """Umlauts, quotes, commas, brackets and line breaks, in training, evaluation and prediction."""
    odd = Path(shutil.copytree(photographs, tmp_path / "Bilder für mich" / "it's, 100 % [neu]\n😀"))
    given = [word for word in small if not word.startswith("dataset.path=")]
    words = [f"dataset.path={odd}", "method.ctx_init=a photo of a cat, or a dog's", f"hydra.run.dir={odd / 'run'}"]
    done = run("train", *given, *words, "epochs=1")
    assert done.code == 0, done.err
    done = run("evaluate", f"run={odd / 'run'}", "num_workers=0", f"hydra.run.dir={odd / 'tested'}")
    assert done.code == 0, done.err
    image = next((odd / "test").rglob("*.jpg"))
    done = run("predict", f"run={odd / 'run'}", str(image), "json=true")
    assert done.code == 0, done.err
    assert json.loads(done.out)[0]["path"] == str(image)


def test_a_word_that_is_not_utf8(run, small, tmp_path):
    """No config file could hold it."""
    done = run("train", *small, f"hydra.run.dir={tmp_path / LATIN_1}")
    assert done.code == 1
    assert "caf\\xe9: not UTF-8" in done.error and "rename" in done.error
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of two pages."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk; what the system says is pretended in the unit tests")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_full_from_the_start(run, small, full_disk):
    (full_disk / "kept").write_bytes(b"x" * 4096)
    (full_disk / "filled").write_bytes(b"x" * 4096)
    done = run("train", *small, f"hydra.run.dir={full_disk / 'run'}")
    assert done.code == 1
    assert "No space left on device; free some space" in done.error and "hydra.run.dir=DIR" in done.error
    assert (full_disk / "kept").read_bytes() == b"x" * 4096


def test_a_full_disk_for_features_is_no_reason_to_stop(run, small, full_disk, tmp_path):
    (full_disk / "filled").write_bytes(b"x" * 8192)
    words = ["features=cached", f"cache_dir={full_disk / 'cache'}", "epochs=1", f"hydra.run.dir={tmp_path / 'run'}"]
    done = run("train", *[word for word in small if word.split("=")[0] not in ("features", "epochs")], *words)
    assert done.code == 0, done.err
    assert "features are not kept for later runs" in done.err and "free some space" in done.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["predict", "run=x", "top=1000000"], ["top=1000000", "at most 100000"]),
        (["interpret", "run=x", "top=many"], ["top=many", "must be int"]),
        (["export", "--format", "run=x"], ["--format", "options are"]),
        (["dashboard", "proejct=x"], ["proejct=x", "options are"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_other_commands(run, words, parts):
    done = run(*words)
    assert (done.code, done.out) == (1, "")
    assert done.err.lstrip().startswith("error: ") and all(part in done.err for part in parts), done.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["cache", "cache_dir=/nowhere"], ["cache_dir=/nowhere", "no such folder"]),
    ],
    ids=["cache"],
)
def test_other_commands_as_a_user_starts_them(run, words, parts):
    done = run.interpreter("-m", f"coop.{words[0]}", *words[1:])
    assert done.code == 1 and "Traceback" not in done.err
    assert done.err.lstrip().startswith("error: ") and all(part in done.err for part in parts), done.err


def test_a_run_folder_that_cannot_be_made(run, small, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("train", *small, f"hydra.run.dir={tmp_path / 'file' / 'run'}")
    assert done.code == 1
    assert str(tmp_path / "file") in done.error and "choose another place" in done.error
    assert (tmp_path / "file").read_text() == ""


def test_training_that_diverges_is_no_result(run, small, tmp_path):
    """NaN everywhere, and still an accuracy: that of calling every image class 0."""
    done = run("train", *small, "optimizer.lr=1e30", "optimizer.warmup_epochs=0", f"hydra.run.dir={tmp_path}")
    assert done.code == 1
    assert "optimizer.lr" in done.error
    assert not (tmp_path / "results.json").exists()
