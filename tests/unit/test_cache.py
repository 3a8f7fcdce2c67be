"""Rows come back as they were put in, and nothing that may be stale comes back at all."""

import os
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from coop.data.cache import FeatureCache, default_cache_dir

CODE = """
import sys, torch
from pathlib import Path
from coop.data.cache import FeatureCache
root, first = Path(sys.argv[1]), int(sys.argv[2])
cache = FeatureCache(root / "cache", "key")
paths = [str(root / f"{i}.jpg") for i in range(40)]
for i in range(first, 40, 2):
    both = [i, (i + 1) % 40]
    cache.add([paths[j] for j in both], torch.tensor(both, dtype=torch.float)[:, None].expand(2, 3))
    cache.lookup(paths)
"""


@pytest.fixture
def paths(tmp_path) -> list[str]:
    made = [tmp_path / f"{index}.jpg" for index in range(40)]
    for index, path in enumerate(made):
        path.write_bytes(bytes([index]) * (index + 1))
    return [str(path) for path in made]


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


def cached(tmp_path, *key) -> FeatureCache:
    return FeatureCache(tmp_path / "cache", *(key or ("key",)))


def same(found: dict[int, torch.Tensor], features: torch.Tensor, indices) -> bool:
    return sorted(found) == sorted(indices) and all(torch.equal(found[index], features[index]) for index in indices)


def test_bit_identical_from_any_number_of_shards(tmp_path, paths, features):
    assert cached(tmp_path).lookup(paths) == {}
    cached(tmp_path).add(paths[:10], features[:10])
    cached(tmp_path).add(paths[10:25], features[10:25])
    assert same(cached(tmp_path).lookup(paths), features, range(25))
    cached(tmp_path).add(paths[25:], features[25:])
    assert same(cached(tmp_path).lookup(paths), features, range(40))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
    assert same(cached(tmp_path).lookup([paths[i] for i in order]), features[order], range(40))


def test_an_image_asked_for_twice_is_found_twice(tmp_path, paths, features):
    cached(tmp_path).add(paths, features)
    found = cached(tmp_path).lookup([paths[3], paths[5], paths[3]])
    assert same(found, features[[3, 5, 3]], range(3))


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_is_not_found(tmp_path, paths, features, change):
    cached(tmp_path).add(paths, features)
    if change == "size":
        status = os.stat(paths[7])
        with open(paths[7], "ab") as file:
            file.write(b"more")
        os.utime(paths[7], ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(paths[7], ns=(0, time.time_ns()))
    found = cached(tmp_path).lookup(paths)
    assert same(found, features, set(range(40)) - {7})
    cached(tmp_path).add([paths[7]], features[:1])
    assert torch.equal(cached(tmp_path).lookup(paths)[7], features[0])


def test_the_same_content_elsewhere_is_another_image(tmp_path, paths, features):
    cached(tmp_path).add(paths, features)
    other = tmp_path / "other"
    other.mkdir()
    os.rename(paths[0], other / "0.jpg")
    assert cached(tmp_path).lookup([str(other / "0.jpg")]) == {}


def test_missing_files_are_never_found(tmp_path, paths, features):
    """A file that went away before its features were kept must not stand for every other missing file."""
    os.unlink(paths[0])
    cached(tmp_path).add(paths[:2], features[:2])
    found = cached(tmp_path).lookup([paths[0], paths[1], str(tmp_path / "never.jpg")])
    assert same(found, features, [1])


def test_a_relative_path_is_the_same_image(tmp_path, paths, features, monkeypatch):
    cached(tmp_path).add(paths[:1], features[:1])
    monkeypatch.chdir(tmp_path)
    assert same(cached(tmp_path).lookup(["0.jpg"]), features, [0])


@pytest.mark.parametrize("other", [("key", 1), ("yek",), ("key", None)])
def test_another_key_is_another_entry(tmp_path, paths, features, other):
    cached(tmp_path).add(paths, features)
    assert cached(tmp_path, *other).lookup(paths) == {}


def test_another_version_of_torch_is_another_entry(tmp_path, paths, features, monkeypatch):
    cached(tmp_path).add(paths, features)
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert cached(tmp_path).lookup(paths) == {}


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "folder"])
def test_a_damaged_shard_is_a_warning(tmp_path, paths, features, damage, caplog):
    cached(tmp_path).add(paths[:20], features[:20])
    (shard,) = cached(tmp_path).folder.glob("*.safetensors")
    cached(tmp_path).add(paths[20:], features[20:])
    content = shard.read_bytes()
    shard.unlink()
    if damage == "folder":
        shard.mkdir()
    else:
        shard.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello " * 50}[damage])
    assert same(cached(tmp_path).lookup(paths), features, range(20, 40))
    assert str(shard) in caplog.text


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, paths, features, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    cached(tmp_path).add(paths, features)
    assert "features are not kept" in caplog.text
    assert cached(tmp_path).lookup(paths) == {}


def test_a_full_disk_leaves_nothing_behind(tmp_path, paths, features, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cached(tmp_path).add(paths, features)
    assert "No space left on device" in caplog.text
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_two_processes_write_at_once(tmp_path, paths):
    writers = [subprocess.Popen([sys.executable, "-c", CODE, str(tmp_path), str(first)]) for first in (0, 1)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found = cached(tmp_path).lookup(paths)
    assert {index: row.tolist() for index, row in found.items()} == {i: [float(i)] * 3 for i in range(40)}
    shards = list(cached(tmp_path).folder.iterdir())
    assert len(shards) == 40, "nothing but whole shards lies there"
    assert all(load_file(shard)["features"].shape == (2, 3) for shard in shards)


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "x"))
    assert default_cache_dir() == tmp_path / "x"
    monkeypatch.delenv("COOP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "coop"
