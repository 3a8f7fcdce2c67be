"""Manifests: written by one run, followed by another, wherever the data set lies."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from coop.data.manifest import apply_manifest, write_manifest
from coop.data.readers.folder import read_folder
from coop.data.sampling import Splits, sample
from coop.errors import CoopError


def data_set(root: Path) -> Splits:
    for folder in ("ant", "bee", "cicada", 'été "x"'):
        (root / folder).mkdir(parents=True)
        for index in range(20):
            (root / folder / f"{index}.jpg").touch()
    return read_folder(None, path=str(root), seed=1)


def export(whole: Splits, file: Path, shots: int = 4, seed: int = 3, classes: str = "all") -> Splits:
    sampled = sample(whole, shots, seed, classes)
    write_manifest(file, whole, sampled, dataset="folder", shots=shots, seed=seed, classes=classes)
    return sampled


@pytest.mark.parametrize("classes", ["all", "base", "new"])
@pytest.mark.parametrize("shots", [1, 4, -1])
def test_round_trip_where_the_split_is_another(tmp_path, shots, classes):
    whole = data_set(tmp_path / "here")
    sampled = export(whole, tmp_path / "m.json", shots, classes=classes)
    (tmp_path / "here").rename(tmp_path / "there")
    elsewhere = read_folder(None, path=str(tmp_path / "there"), seed=9)
    random.seed(0)
    followed = apply_manifest(elsewhere, str(tmp_path / "m.json"), shots=shots, classes=classes)
    for part in ("train", "val", "test"):
        moved = [item._replace(path=item.path.replace("/here/", "/there/")) for item in getattr(sampled, part)]
        assert getattr(followed, part) == moved
    assert (followed.classnames, followed.origin) == (sampled.classnames, "generated")


def test_file_is_plain_json_in_the_form_of_split_files(tmp_path):
    whole = data_set(tmp_path / "data")
    sampled = export(whole, tmp_path / "m.json")
    content = json.loads((tmp_path / "m.json").read_text())
    assert (content["dataset"], content["shots"], content["seed"], content["classes"]) == ("folder", 4, 3, "all")
    assert content["train"][0] == ["/".join(Path(sampled.train[0].path).parts[-2:]), 0, "ant"]
    assert [len(content[part]) for part in ("train", "val", "test")] == [16, 16, 24]
    assert content["classnames"] == whole.classnames


def test_keeps_the_preprocessing_of_a_shifted_set(tmp_path):
    whole = replace(data_set(tmp_path / "data"), preprocess=str)
    export(whole, tmp_path / "m.json")
    assert apply_manifest(whole, str(tmp_path / "m.json"), shots=4).preprocess is str


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(shots=8), "was written for shots=8, not 4; set shots=8"),
        (lambda m: m.update(classes="base"), "was written for dataset.classes=base"),
        (lambda m: m.update(format="other"), 'format is "other": must be .* Not a manifest'),
        (lambda m: m.pop("test"), "test is missing. Not a manifest"),
        (lambda m: m["train"].append(["ant/x.jpg", 0, "ant"]), "1 of its images are not in this data set .*ant/x.jpg"),
        (lambda m: m["train"].append(["ant/1.jpg", 0]), r"train\[16\]\[2\] is missing.*python -m coop\.data export"),
        (
            lambda m: m["train"].append(["ant/1.jpg", 7, "ant"]),
            r"train\[16\] is .*, which its list of classnames does not",
        ),
        (lambda m: m["train"].append(["ant/1.jpg", 1, "bee"]), r"calls ant/1\.jpg 'bee'; this data set calls it 'ant'"),
    ],
)
def test_does_not_fit(tmp_path, change, message):
    whole = data_set(tmp_path / "data")
    export(whole, tmp_path / "m.json")
    content = json.loads((tmp_path / "m.json").read_text())
    change(content)
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(CoopError, match=message) as error:
        apply_manifest(whole, str(tmp_path / "m.json"), shots=4)
    assert "m.json" in str(error.value)


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_not_a_manifest(tmp_path, content):
    whole = data_set(tmp_path / "data")
    if content is not None:
        (tmp_path / "m.json").write_text(content)
    with pytest.raises(CoopError, match=r"dataset\.manifest=.*m\.json"):
        apply_manifest(whole, str(tmp_path / "m.json"), shots=4)
