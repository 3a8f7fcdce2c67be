"""Commands are quick to the hand: what takes seconds to import is imported where there is something to compute."""

import importlib
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra._internal.hydra import Hydra
from torchvision.datasets.folder import IMG_EXTENSIONS

import coop
from coop.cli.command import main_of
from coop.cli.hydra_app import launch
from coop.data.readers.listing import EXTENSIONS

PHOTOGRAPHS = Path(coop.__file__).parent / "assets" / "mini" / "images"
HEAVY = {
    "matplotlib", "open_clip", "pandas", "pytorch_lightning", "sklearn", "timm", "torch", "torchmetrics", "torchvision",
    "transformers", "wandb",
}  # fmt: skip


@pytest.mark.parametrize(
    "code, words, said",
    [
        (0, "train --help", "Compose your configuration from those groups"),
        (0, "train --cfg job", "shots: 16"),
        (1, "train sots=3", "did you mean shots or steps?"),
        (1, "train dataset.clases=base", "did you mean classes?"),
        (0, "evaluate --help", "Compose your configuration from those groups"),
        (0, "predict --help", "python -m coop.predict run="),
        (0, "export --help", "python -m coop.export run="),
        (0, "interpret --help", "python -m coop.interpret run="),
        (0, "convert --help", "python -m coop.convert CHECKPOINT"),
        (0, "dashboard --help", "python -m coop.dashboard"),
        (1, "predict run=. none.jpg", "none.jpg: no such image"),
        (1, "predict run=none .", "none/prompt.safetensors: no such file"),
        (0, "search --help", "python -m coop.search PHOTOS"),
        (1, f"search {PHOTOGRAPHS} words run=none", "prompt.safetensors: no such file"),
        (0, "retrieve --help", "python -m coop.retrieve"),
        (0, "data check mini", "25       400    100  500"),
        (0, "cache cache_dir=.", "0 entries"),
        (0, "report --help", "python -m coop.report RUNS..."),
    ],
)
def test_nothing_heavy_is_imported(tmp_path, code, words, said):
    (tmp_path / "prompt.safetensors").touch()
    command = [sys.executable, "-X", "importtime", "-m", *f"coop.{words}".split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    imported = {name.partition(".")[0] for name in re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.M)}
    assert "coop" in imported
    assert not HEAVY & imported


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_keys_and_choices(tmp_path):
    lines = ["python -m coop.train shots=1 method=k", "python -m coop.evaluate feat", "python other.py method="]
    script = [
        f'python() {{ {sys.executable} "$@"; }}',
        'eval "$(python -m coop.train -sc install=bash)"',
        "complete -p python",
        *(f'COMP_LINE="{line}"; hydra_bash_completion; echo "${{COMPREPLY[@]}}."' for line in lines),
    ]
    done = subprocess.run(["bash", "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "complete -o default -o nospace -F hydra_bash_completion python",
        "method=kgcoop.",
        "features=.",
        ".",
    ]


def test_the_config_of_a_run_is_composed_once(monkeypatch, tmp_path):
    times, compose = [], Hydra.compose_config
    monkeypatch.setattr(Hydra, "compose_config", lambda *args, **given: times.append(1) or compose(*args, **given))
    monkeypatch.setattr(sys, "argv", ["train.py", f"hydra.run.dir={tmp_path}"])
    launch(lambda cfg: None, "train")
    assert len(times) == 1


def test_importing_a_command_leaves_lightnings_logger_as_the_config_has_set_it(monkeypatch):
    logger = logging.getLogger("pytorch_lightning")
    monkeypatch.setattr(logger, "level", logging.WARNING)

    def as_lightning_does(name):
        logger.setLevel(logging.INFO)
        return SimpleNamespace(main=name)

    monkeypatch.setattr(importlib, "import_module", as_lightning_does)
    assert main_of("train") == "coop.train"
    assert logger.level == logging.WARNING


def test_images_end_as_torchvision_has_it():
    assert EXTENSIONS == IMG_EXTENSIONS
