"""An installed wheel is complete, and every command runs from it in another folder, without the checkout."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Runs commands one after another in one process, as `python -m coop.NAME` would: importing torch takes seconds.
RUNNER = """
import json, runpy, sys
for name, words in json.loads(sys.argv[1]):
    sys.argv = [f"coop.{name}", *words]
    try:
        runpy.run_module(f"coop.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, (name, words, end.code)
    print("DONE", name, flush=True)
import coop, hydra_plugins.coop_launcher as plugin
print("FROM", coop.__version__, coop.__file__, plugin.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling.builders.wheel")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    built = subprocess.run([*pip, "-w", str(folder), str(ROOT)], capture_output=True, text=True)
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


def commands() -> set[str]:
    """Whatever `python -m coop.NAME` runs."""
    modules = [*(ROOT / "coop").glob("*.py"), *(ROOT / "coop").glob("*/__main__.py")]
    found = [path for path in modules if '__name__ == "__main__"' in path.read_text()]
    return {path.parent.name if path.stem == "__main__" else path.stem for path in found}


@pytest.mark.slow
def test_every_command_runs_from_the_wheel_alone(wheel, run, small, photographs, tmp_path):
    """Unpacked into a folder of its own and run in another; the checkout is not on its path."""
    site, folder = tmp_path / "site", tmp_path / "run"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True)
    image = next((photographs / "test").rglob("*.jpg"))
    work = {
        "train": [*small, "epochs=1", f"hydra.run.dir={folder}"],
        "evaluate": [f"run={folder}", "num_workers=0", f"hydra.run.dir={tmp_path / 'evaluated'}"],
        "predict": [f"run={folder}", str(image)],
        "export": [f"run={folder}"],
        "interpret": [f"run={folder}"],
        "report": [str(folder), f"out={tmp_path / 'report'}"],
        "data": ["check", "mini"],
        "cache": ["list"],
    }
    given = [*work.items(), *((name, ["--help"]) for name in sorted(commands() - work.keys()))]
    done = run.interpreter("-c", RUNNER, json.dumps(given), PYTHONPATH=str(site))
    assert done.code == 0, done.out + done.err
    assert [line.split()[1] for line in done.out.splitlines() if line.startswith("DONE")] == [n for n, _ in given]
    version, *origins = next(line for line in done.out.splitlines() if line.startswith("FROM")).split()[1:]
    assert f"coop_clip-{version}-" in wheel.name, "the version stands in coop/__init__.py alone"
    assert all(origin.startswith(str(site)) for origin in origins)
    used = (folder / ".hydra" / "hydra.yaml").read_text()
    assert str(site / "coop" / "conf") in used and str(ROOT / "conf") not in used
    for name in ("run/class_weights.safetensors", "run/words.json", "evaluated/results.json", "report/report.html"):
        assert (tmp_path / name).is_file()
