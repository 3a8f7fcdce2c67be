"""python -m coop.cache: list and clear."""

import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from coop.cache import main
from coop.cli.command import exit_code
from coop.data.feature_cache import FeatureCache, identify

LISTING, UNPACKED = "0123456789abcdef01234567", "fedcba9876543210fedcba98"

run = partial(exit_code, main)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Two entries of features (5 images in two shards, 1 image), a listing, unpacked images, and others' files."""
    root = tmp_path / "cache"
    monkeypatch.setenv("COOP_CACHE", str(root))
    images = [tmp_path / f"{number}.jpg" for number in range(6)]
    for image in images:
        image.write_text(image.name)
    first, second = FeatureCache(root, "weights"), FeatureCache(root, "other weights")
    first.add(identify(images[:3]), torch.ones(3, 8))
    first.add(identify(images[3:5]), torch.ones(2, 8))
    second.add(identify(images[5:]), torch.ones(1, 4))
    (root / "listings").mkdir()
    (root / "listings" / LISTING).write_bytes(b"x" * 100)
    (root / "huggingface" / UNPACKED).mkdir(parents=True)
    (root / "huggingface" / UNPACKED / "0000000.png").write_bytes(b"x" * 50)
    (root / "features" / "notes.txt").write_text("mine")
    (root / "my_folder").mkdir()
    (root / "my_folder" / "thesis.tex").write_text("mine")
    return root, first.folder, second.folder


def table(text: str) -> dict[str, list[str]]:
    """Cells of the printed table by the entry's name."""
    lines = [[cell.strip() for cell in re.split("[│┃|]", line)[1:-1]] for line in text.splitlines() if "│" in line]
    return {cells[1]: cells for cells in lines}


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_list(cache, capsys):
    root, first, second = cache
    assert run(["list"]) == 0
    out = capsys.readouterr().out
    found = table(out)
    assert found[first.name[:12]][2:5] == ["5 images x 8", "2", f"{size_of(first)} bytes"]
    assert found[second.name[:12]][2:5] == ["1 images x 4", "1", f"{size_of(second)} bytes"]
    assert found[LISTING[:12]][0] == "listings" and found[LISTING[:12]][4] == "100 bytes"
    assert found[UNPACKED[:12]][0] == "huggingface" and found[UNPACKED[:12]][4] == "50 bytes"
    total = size_of(first) + size_of(second) + 150
    assert f"{root}: 4 entries, {total / 1000:.1f} kB" in out or f"{root}: 4 entries, {total} bytes" in out
    assert f"never removed: {root / 'features/notes.txt'}" in out
    assert f"never removed: {root / 'my_folder'}" in out


def test_list_is_the_default_and_takes_a_folder(cache, capsys, monkeypatch):
    root, *_ = cache
    monkeypatch.delenv("COOP_CACHE")
    assert run([f"cache_dir={root}"]) == 0
    assert "4 entries" in capsys.readouterr().out


def test_an_empty_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "never made"))
    assert run([]) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path / 'never made'}: 0 entries, 0 bytes"
    assert run(["clear", "all"]) == 0
    assert "removed 0 entries" in capsys.readouterr().out


def test_what_shards_say_about_themselves(cache, capsys):
    _, first, _ = cache
    arrays = {"identities": np.zeros((1, 16), np.uint8), "features": np.ones((1, 8), np.float32)}
    save_file(arrays, first / "new.safetensors", metadata={"backbone": "tiny", "dataset": "caltech101"})
    run([])
    content = table(capsys.readouterr().out)[first.name[:12]][2]
    assert set(content.split(", ")) == {"tiny", "caltech101", "6 images x 8"}


def test_damaged_and_unfinished_shards(cache, capsys):
    _, first, _ = cache
    (first / "torn.safetensors").write_bytes(b"\x10")
    (first / ".abc.safetensors.tmp").write_bytes(b"half")
    run([])
    assert table(capsys.readouterr().out)[first.name[:12]][2:4] == ["5 images x 8, 1 unreadable files", "4"]
    assert run(["clear", "features"]) == 0
    assert not first.exists()


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_clear_one_by_the_beginning_of_its_name(cache, capsys):
    root, first, second = cache
    size = size_of(first)
    before = everything(root)
    assert run(["clear", first.name[:12]]) == 0
    assert f"removed 1 entries, {size} bytes" in capsys.readouterr().out
    assert not first.exists() and second.is_dir()
    assert {Path(name).parts[1] for name in before - everything(root)} == {first.name}


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("features", {f"listings/{LISTING}", f"huggingface/{UNPACKED}/0000000.png"}),
        ("all", set()),
    ],
)
def test_clear_by_kind_leaves_what_is_of_others(cache, word, left):
    root, *_ = cache
    assert run(["clear", word]) == 0
    assert everything(root) == left | {"features/notes.txt", "my_folder/thesis.tex"}


def test_clear_all_of_a_folder_that_is_no_cache(tmp_path):
    home = tmp_path / "home"
    (home / "features").mkdir(parents=True)
    (home / "features/list.md").write_text("mine")
    (home / "thesis.tex").write_text("mine")
    assert run(["clear", "all", f"cache_dir={home}"]) == 0
    assert everything(home) == {"features/list.md", "thesis.tex"}


def test_a_link_is_removed_and_not_what_it_leads_to(cache, tmp_path):
    _, first, _ = cache
    (tmp_path / "precious").write_text("mine")
    (first / "link.safetensors").symlink_to(tmp_path / "precious")
    assert run(["clear", "all"]) == 0
    assert (tmp_path / "precious").read_text() == "mine" and not first.exists()


def test_a_run_that_goes_on_computes_anew(cache, tmp_path):
    root, *_ = cache
    entry = FeatureCache(root, "weights")
    image, features = identify([str(tmp_path / "0.jpg")]), torch.empty(1, 8)
    assert entry.lookup(image, features).tolist() == [True]
    run(["clear", "all"])
    assert entry.lookup(image, features).tolist() == [False]
    entry.add(image, torch.full((1, 8), 2.0))
    assert entry.lookup(image, features).tolist() == [True] and features[0].tolist() == [2.0] * 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clear"], "error: clear: say what: all, a kind (features, listings, huggingface), or the name of an entry"),
        (["clear", "feature"], "error: clear feature: there is no such entry in "),
        (["clear", "0"], "error: clear 0: there is no such entry in "),
        (
            ["remove", "all"],
            "error: python -m coop.cache remove all: there is no such command; allowed are",
        ),
        (["--all"], "error: --all: there is no such option; options are cache_dir="),
        (["dir=/x"], "error: dir=/x: there is no such option"),
        (["cache_dir=/no/such/folder"], "error: cache_dir=/no/such/folder: no such folder"),
    ],
)
def test_mistakes(cache, capsys, words, message):
    root, *_ = cache
    before = everything(root)
    assert run(words) == 1
    assert capsys.readouterr().err.lstrip().startswith(message)
    assert everything(root) == before


def test_a_beginning_that_two_share(cache, capsys):
    root, first, _ = cache
    (root / "features" / (first.name[:8] + "0" * 24)).mkdir()
    assert run(["clear", first.name[:8]]) == 1
    assert "2 entries begin so in" in capsys.readouterr().err
    assert first.is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_folder_that_cannot_be_changed(cache, capsys):
    _, first, _ = cache
    first.chmod(0o500)
    assert run(["clear", "all"]) == 1
    assert "Permission denied; choose another place, or change the permissions" in capsys.readouterr().err
    first.chmod(0o700)


def test_help(capsys):
    assert run(["--help"]) == 0
    assert "python -m coop.cache [list | clear WHAT...]" in capsys.readouterr().out
