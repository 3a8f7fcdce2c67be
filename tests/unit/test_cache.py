"""Rows come back as they were put in, and nothing that may be stale comes back at all."""

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from coop.cache import main as run
from coop.data.feature_cache import FeatureCache, default_cache_dir, identify


def write(root: Path, first: int) -> None:
    """What one of two processes does: every image twice in all, two at a time."""
    cache, paths = FeatureCache(root / "cache", "key"), [str(root / f"{i}.jpg") for i in range(40)]
    for i in range(first, 40, 2):
        both = [i, (i + 1) % 40]
        cache.add(identify([paths[j] for j in both]), torch.tensor(both, dtype=torch.float)[:, None].expand(2, 3))
        cache.lookup(identify(paths), torch.empty(40, 3))


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def paths(tmp_path) -> list[str]:
    made = [tmp_path / f"{index}.jpg" for index in range(40)]
    for index, path in enumerate(made):
        path.write_bytes(bytes([index]) * (index + 1))
    return [str(path) for path in made]


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


class Cached(FeatureCache):
    """By paths, and with the rows that were found by their index."""

    def add(self, paths: list[str], features: torch.Tensor) -> None:
        super().add(identify(paths), features)

    def lookup(self, paths: list[str], width: int = 8) -> dict[int, torch.Tensor]:
        features = torch.full((len(paths), width), torch.nan)
        found = super().lookup(identify(paths), features)
        return {int(index): features[index] for index in np.flatnonzero(found)}


def cached(tmp_path, *key) -> Cached:
    return Cached(tmp_path / "cache", *(key or ("key",)))


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


def shards(tmp_path) -> list:
    return sorted(cached(tmp_path).folder.glob("*.safetensors"))


@pytest.mark.parametrize("part", ["identities", "features", "last"])
def test_a_flipped_bit_is_noticed(tmp_path, paths, features, part, caplog):
    """One bit of one number: the features would still look like features."""
    cached(tmp_path).add(paths[:20], features[:20])
    (shard,) = shards(tmp_path)
    content = bytearray(shard.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    stored = {"identities": identify(paths[:20]).tobytes(), "features": features[:20].numpy().tobytes()}
    at = len(content) - 1 if part == "last" else content.index(stored[part], begin) + 5
    content[at] ^= 4
    shard.write_bytes(content)
    cached(tmp_path).add(paths[20:], features[20:])
    assert same(cached(tmp_path).lookup(paths), features, range(20, 40))
    assert f"{shard}: unreadable, its images are encoded again (its checksum does not fit its content)" in caplog.text
    caplog.clear()
    assert same(cached(tmp_path).lookup(paths), features, range(20, 40))
    assert caplog.text == "" and shard.with_suffix(".damaged").is_file(), "said once, then set aside"


def test_shards_of_earlier_versions_are_read(tmp_path, paths, features):
    """They have no checksum."""
    folder = cached(tmp_path).folder
    folder.mkdir(parents=True)
    rows = torch.frombuffer(bytearray(identify(paths).tobytes()), dtype=torch.uint8).view(40, 16)
    save_file({"identities": rows, "features": features}, folder / "old.safetensors", {"backbone": "tiny"})
    assert same(cached(tmp_path).lookup(paths), features, range(40))


def ruined(kind: str, identities: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
    changed = {
        "width": {"features": features[:, :5].contiguous()},
        "half": {"features": features.half()},
        "double": {"features": features.double()},
        "nan": {"features": features.masked_fill(features == features[7, 3], torch.nan)},
        "infinite": {"features": features.masked_fill(features == features[7, 3], torch.inf)},
        "fewer features": {"features": features[:-1]},
        "fewer identities": {"identities": identities[:-1]},
        "short identities": {"identities": identities[:, :8].contiguous()},
        "identities of another type": {"identities": identities.float()},
        "flat": {"features": features.flatten()},
        "cubic": {"features": features[None]},
        "something more": {"labels": torch.zeros(1)},
    }[kind]
    return {"identities": identities, "features": features} | changed


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("width", "features of width 5, expected 8"),
        ("half", r"features of type F16 and shape [20, 8], expected F32 and (N, E)"),
        ("double", "features of type F64"),
        ("nan", "features that are not finite"),
        ("infinite", "features that are not finite"),
        ("fewer features", "identities of shape [20, 16] for 19 images"),
        ("fewer identities", "identities of shape [19, 16] for 20 images"),
        ("short identities", "identities of shape [20, 8] for 20 images"),
        ("identities of another type", "identities of"),
        ("flat", "features of type F32 and shape [160], expected F32 and (N, E)"),
        ("cubic", "features of type F32 and shape [1, 20, 8]"),
        ("something more", "holds features, identities, labels, expected features and identities"),
    ],
)
def test_a_shard_of_wrong_form_is_named_and_left_out(tmp_path, paths, features, kind, message, caplog, capsys):
    folder = cached(tmp_path).folder
    folder.mkdir(parents=True)
    rows = torch.frombuffer(bytearray(identify(paths[:20]).tobytes()), dtype=torch.uint8).view(20, 16)
    save_file(ruined(kind, rows, features[:20]), folder / "0.safetensors")
    cached(tmp_path).add(paths[20:], features[20:])
    assert run([f"cache_dir={tmp_path / 'cache'}"]) == 0
    assert same(cached(tmp_path).lookup(paths), features, range(20, 40))
    assert f"{folder / '0.safetensors'}: unreadable, its images are encoded again ({message}" in caplog.text
    cached(tmp_path).add(paths[:20], features[:20])
    assert same(cached(tmp_path).lookup(paths), features, range(40)), "the damaged rows are nowhere"
    assert run([f"cache_dir={tmp_path / 'cache'}"]) == 0
    assert "40 images x 8, 1 unreadable files" in " ".join(capsys.readouterr().out.split())


def test_a_named_pipe_does_not_hang(tmp_path, paths, features, caplog):
    cached(tmp_path).add(paths, features)
    os.mkfifo(cached(tmp_path).folder / "0.safetensors")
    assert same(cached(tmp_path).lookup(paths), features, range(40))
    assert "0.safetensors: unreadable, its images are encoded again (not a file)" in caplog.text
    assert run([f"cache_dir={tmp_path / 'cache'}"]) == 0


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
    writers = [multiprocessing.get_context("fork").Process(target=write, args=(tmp_path, first)) for first in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    found = cached(tmp_path).lookup(paths, width=3)
    assert {index: row.tolist() for index, row in found.items()} == {i: [float(i)] * 3 for i in range(40)}
    shards = list(cached(tmp_path).folder.iterdir())
    assert len(shards) == 40, "nothing but whole shards lies there"
    assert all(load_file(shard)["features"].shape == (2, 3) for shard in shards)


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "x"))
    assert default_cache_dir() == tmp_path / "x"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COOP_CACHE")
    assert default_cache_dir() == tmp_path / ".cache" / "coop"
    monkeypatch.setenv("COOP_CACHE", "")
    assert default_cache_dir() == tmp_path / ".cache" / "coop", "not the folder that the command is started in"
