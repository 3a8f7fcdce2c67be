"""What the README and the documents beside the code show: commands that exist, files that exist, figures with a source."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict

from coop.cli.overrides import as_overrides
from coop.config import check, conf_dir
from coop.data.__main__ import main as data_command
from coop.report.__main__ import main as report
from coop.report.published import FILE

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
ROOMS = ("benchmarks", "conf", "coop", "experiments", "notebooks", "tests")  # not what lies in a .venv
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    *(file for room in ROOMS for file in sorted((ROOT / room).rglob("README.md"))),
]


def commands(*documents, of=("train",)):
    """The words of each documented `python -m coop.NAME ...`."""
    text = "\n".join(document.read_text() for document in documents).replace("\\\n", " ")
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            names = [word for word in words if word.startswith("coop.")]
            if names and names[0].removeprefix("coop.") in of:
                yield words[words.index(names[0]) :]


def first_of_each(words):
    """Overrides of a training command, without Hydra's flags; of a list of values the first."""
    overrides = OverridesParser.create().parse_overrides(as_overrides([word for word in words if word != "-m"]))
    for override in overrides:
        if override.is_sweep_override():
            yield f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        else:
            yield override.input_line


TRAINING = sorted({" ".join(words[1:]): words[1:] for words in commands(*DOCUMENTS)}.items())
# A config of one's own, a word of the shell, what another command makes first.
ELSEWHERE = ("--config-dir", "$", "local-dir:runs")


@pytest.mark.parametrize(
    "words", [words for line, words in TRAINING if not any(e in line for e in ELSEWHERE)], ids=" ".join
)
def test_a_documented_training_command_has_a_config(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random.pt").touch()  # which the line above a command makes
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [*first_of_each(words)], return_hydra_config=True)
    with open_dict(cfg):
        del cfg["hydra"]
    check(cfg)


def test_brackets_are_quoted_for_zsh():
    for document in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL):
            assert not (found := re.search(r"\s[\w.+]+=\[", block)), f"{document}: {found[0]}"


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"


def test_the_front_page_is_one_page():
    assert len(README.read_text().splitlines()) <= 150


def table_of_methods():
    rows = [line.strip("| \n").split(" | ") for line in README.read_text().splitlines() if line.startswith("| `")]
    rows = [row for row in rows if row[0] != "`method=`"]
    return {name: row[1:] for row in rows for name in re.findall("`(.*?)`", row[0])}


def test_every_method_is_in_the_table():
    assert set(table_of_methods()) == {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}


def test_figures_of_the_table_have_a_source():
    measured = (ROOT / "experiments" / "caltech101" / "README.md").read_text()
    published = (
        pd.read_csv(FILE, dtype={"setting": str})
        .fillna("")
        .query("dataset == 'average of 11 data sets' and backbone == 'ViT-B-16-quickgelu'")
    )
    few_shot = published[published["table"].str.startswith("few-shot") & (published["shots"] == 16)]
    to_new = published[published["setting"].str.contains("classes=harmonic_mean")]
    for name, (_, _, ours, *theirs) in table_of_methods().items():
        assert ours == "-" or f"| {ours} " in measured
        for figure, source in zip(theirs, (few_shot, to_new), strict=True):
            confidence = "recalled" if figure.endswith("*") else "verified"
            rows = source[(source["method"] == name.removesuffix("_m4")) & (source["confidence"] == confidence)]
            assert figure == "-" or float(figure.removesuffix(" \\*")) in [float(f) for f in rows["accuracy_percent"]]


def test_five_things_to_do_next(run, small, photographs):
    """Word for word, but for a smaller CLIP, fewer epochs, one run of the study, and paths."""
    for folder, pattern in (("photos", "*/*"), ("more", "*/*2*")):
        (run.folder / folder).mkdir()
        for image in (photographs / "test").glob(pattern):
            shutil.copy(image, run.folder / folder / f"{image.parent.name}_{image.name}")
    text = README.read_text().split("## Five things to do next")[1].split("## Where to read on")[0]
    for line in "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines():
        words = shlex.split(line.replace("DIR", str(photographs)), comments=True)[2:]
        command, *words = [word for word in words if word != "onnx=true"]
        if command == "coop.report":
            assert report([str(run.folder / word) for word in words]) == 0
            continue
        if words[0] == "-m":
            words = [*first_of_each(words), "method=zero_shot,linear_probe", "-m"]
        if command == "coop.train":
            words = [*small, "epochs=1", *words]
        done = run(command.removeprefix("coop."), *words)
        assert done.code == 0, f"{line}\n{done.err}"
    mine, compare = run.folder / "runs" / "mine", run.folder / "runs" / "compare"
    assert json.loads((mine / "results.json").read_text())["shots"] == 4
    assert (mine / "class_weights.safetensors").exists()
    assert (compare / "report" / "report.html").exists()


def test_the_data_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    documented = [words[1:] for words in commands(ROOT / "coop" / "data" / "README.md", of=("data",))]
    assert [words[0] for words in documented] == ["check", "prepare", "show", "export"]
    for words in documented:
        if words[0] in ("show", "export"):
            assert data_command(words) == 0
    assert len(json.loads((tmp_path / "shots.json").read_text())["train"]) == 4 * 25
    assert (tmp_path / "shots.png").stat().st_size > 10_000
    data_command([word.replace("DIR", str(tmp_path)) for word in documented[0]])
    assert "imagenet" in capsys.readouterr().out


def test_a_data_set_config_of_ones_own(run, small, photographs, tmp_path):
    document = ROOT / "coop" / "data" / "README.md"
    (text,) = re.findall(r"`conf/dataset/birds.yaml`.*?```yaml\n(.*?)```", document.read_text(), re.DOTALL)
    config = tmp_path / "conf" / "dataset" / "birds.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(text.replace("/data/birds", str(photographs)))
    others = [word for word in small if not word.startswith("dataset")]
    done = run(
        "train", f"--config-dir={tmp_path / 'conf'}", *others, "dataset=birds", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["dataset"], results["num_classes"], results["n_test"]) == ("birds", 5, 20)
    assert "template: a photo of a {}, a type of bird." in (tmp_path / "run" / "config.yaml").read_text()
