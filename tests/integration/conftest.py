"""Commands on real photographs, with a small CLIP where only the mechanics matter."""

import json
import shutil
from pathlib import Path

import pytest
from clip_folder import write_clip_folder
from commands import Commands

import coop

MINI = Path(coop.__file__).parent / "assets" / "mini"
CLASSES, TRAIN, VAL, TEST = 5, 6, 2, 4


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def run(work) -> Commands:
    """Commands in a folder that is not the checkout, offline, with a cache of features that all tests share."""
    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    env = {
        "COOP_CACHE": str(work / "cache"),
        "HOME": str(work / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "COLUMNS": "200",
    }
    return Commands(elsewhere, env)


@pytest.fixture
def plain(run, monkeypatch) -> None:
    """Runs draw no pictures: half of the time of a small one."""
    monkeypatch.setitem(run.env, "COOP_TEST_PLAIN", "1")


@pytest.fixture(scope="session")
def small_folder(work) -> Path:
    """The small CLIP with random weights: a second for a whole run."""
    return write_clip_folder(work / "small_clip")


@pytest.fixture(scope="session")
def photographs(work) -> Path:
    """A user's folder with train, val and test: 5 classes of the bundled photographs."""
    rows, root = json.loads((MINI / "split_mini.json").read_text()), work / "photographs"
    names = sorted({name for _, _, name in rows["train"]})[:CLASSES]
    for part, most in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        for name in names:
            folder = root / part / name.replace(" ", "_")
            folder.mkdir(parents=True)
            for path in [row[0] for row in rows[part] if row[2] == name][:most]:
                shutil.copy(MINI / "images" / path, folder)
    return root


@pytest.fixture(scope="session")
def small(small_folder, photographs) -> list[str]:
    """Overrides of a run of the small CLIP on the folder of photographs."""
    return [
        "backbone=open_clip", f"backbone.model=local-dir:{small_folder}", "features=cached", "num_workers=0",
        "dataset=folder", f"dataset.path={photographs}", "shots=4", "epochs=3", "batch_size=10", "logger=none",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def finished(run, small, work) -> Path:
    """The folder of a finished run; tests copy it before they change it."""
    folder = work / "finished"
    done = run("train", *small, f"hydra.run.dir={folder}", COOP_TEST_PLAIN="")
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())
