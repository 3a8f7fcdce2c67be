"""An installed wheel is complete: configs, the bundled CLIP and photographs, published splits."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling.builders.wheel")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-q",
        "-w",
        str(folder),
    ]
    built = subprocess.run([*pip, str(ROOT)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_everything_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    for folder, target in (("conf", "coop/conf"), ("coop", "coop"), ("hydra_plugins", "hydra_plugins")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{target}/{path.relative_to(ROOT / folder)}" in inside
    assert not [name for name in inside if name.startswith(("tests/", "experiments/", "runs/", "notebooks/"))]


def test_an_installed_wheel_runs_from_anywhere(wheel, run, finished, tmp_path):
    """Unpacked into a folder of its own and run from another; the checkout is not on its path."""
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", str(tmp_path / "site")]
    subprocess.run([*pip, str(wheel)], check=True)
    done = run.interpreter(
        "-m", "coop.evaluate", f"run={finished}", "num_workers=0", f"hydra.run.dir={tmp_path / 'run'}",
        PYTHONPATH=str(tmp_path / "site"),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "results.json").is_file()
    used = (tmp_path / "run" / ".hydra" / "hydra.yaml").read_text()
    assert str(tmp_path / "site" / "coop" / "conf") in used
    assert str(ROOT / "conf") not in used
