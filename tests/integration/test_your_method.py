"""experiments/your_method/README.md: its files and commands, word for word."""

import json
import re
import shlex
from pathlib import Path

import pytest
from commands import Commands

import coop

METHODS = ("logit_bias", "fading_kgcoop")
README = Path(__file__).parents[2] / "experiments" / "your_method" / "README.md"


@pytest.fixture
def folder(run) -> Path:
    """A folder of one's own with the files of the README."""
    folder = run.folder / "my_project"
    files = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", README.read_text(), re.DOTALL))
    assert files.keys() == {file for name in METHODS for file in (f"{name}.py", f"conf/method/{name}.yaml")}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in METHODS:
        lines = files[f"{name}.py"].splitlines() + files[f"conf/method/{name}.yaml"].splitlines()
        assert len([line for line in lines if line.strip()]) < 40
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("plain")
def test_the_readme_runs(run, folder):
    blocks = re.findall(r"<!-- run -->\n```bash\n(.*?)```", README.read_text(), re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.strip().splitlines()]
    assert [words[0] for words in commands] == ["python"] * 3
    assert [words[1] for words in commands] == ["-m"] * 3
    here = Commands(folder, run.env)
    for words in commands:
        done = here(words[2].removeprefix("coop."), *words[3:])
        assert done.code == 0, done.err
    trained, shifted, base = (
        json.loads((folder / name / "results.json").read_text()) for name in ("run", "shifted", "base")
    )
    assert (trained["method"], trained["trainable_params"], trained["epochs"]) == ("logit_bias", 25, 100)
    assert trained["test/acc"] > trained["zero_shot/acc"]
    assert list(shifted["targets"]) == ["mini_sketch"]
    assert (base["method"], base["trainable_params"], base["epochs"]) == ("fading_kgcoop", 4 * 256, 30)
    assert base["test/acc"] > base["zero_shot/acc"]
    assert base["targets"]["mini:new"]["num_classes"] == 12

    image = next((Path(coop.__file__).parent / "assets" / "mini" / "images").rglob("*.jpg"))
    done = here("predict", "--config-dir", "conf", "run=run", "json=true", str(image))
    assert done.code == 0, done.err
    assert len(json.loads(done.out)[0]["classes"]) == 5

    done = here.interpreter(*commands[0][1:], "method.scale=much")
    assert done.code == 1
    assert "error: method.scale=much: must be float, not str" in done.err
