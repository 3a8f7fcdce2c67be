"""Features are the CLIP's own, bit for bit the same whatever the order, the company, the workers or the cache."""

import gc
import itertools
import math
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import open_clip
import pytest
import small_clip as small
import torch
from PIL import Image, ImageOps

from coop import CoopError, FrozenCLIP, Item
from coop.data import features
from coop.data.feature_cache import FeatureCache
from coop.data.features import CPU_BATCH, FeatureExtractor
from coop.data.readers.mini import SHIFTS


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[Item]:
    folder = tmp_path_factory.mktemp("images")
    made = []
    for index in range(21):
        pixels = np.random.RandomState(index).randint(0, 256, (40 + index, 60, 3), dtype=np.uint8)
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        made.append(Item(str(path), index % 3, f"class {index % 3}"))
    return made


@pytest.fixture(scope="module")
def convolutional() -> FrozenCLIP:
    """A tower with convolutions throughout: their kernels depend on the batch size."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    return FrozenCLIP(open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text), small.tokenizer())


def extractor(clip: FrozenCLIP, workers: int = 0, **options) -> FeatureExtractor:
    return FeatureExtractor(clip, device=torch.device("cpu"), num_workers=workers, **options)


def forbid_encoding(monkeypatch):
    def encode(*_):
        raise AssertionError("an image was encoded that is in the cache")

    monkeypatch.setattr(FeatureExtractor, "_encode", encode)


def test_equal_one_image_through_the_clips_own_transform(small_clip, items):
    transform = open_clip.transform.image_transform_v2(small_clip.preprocess_cfg, is_train=False)
    ours = extractor(small_clip)(items, None, "x")
    assert ours.shape == (21, 64)
    assert ours.dtype == torch.float32
    for item, row in zip(items, ours, strict=True):
        expected = small_clip.encode_image(transform(Image.open(item.path).convert("RGB"))[None])[0]
        assert torch.allclose(row, expected, atol=1e-6)


@pytest.mark.parametrize("clip", ["small_clip", "convolutional"])
def test_independent_of_order_and_company(request, clip, items):
    extract = extractor(request.getfixturevalue(clip))
    whole = extract(items, None, "x")
    order = list(range(21))
    random.Random(0).shuffle(order)
    assert torch.equal(extract([items[i] for i in order], None, "x"), whole[order])
    for index in (0, 7, 8, 20):
        assert torch.equal(extract([items[index]], None, "x")[0], whole[index]), "alone"
    assert torch.equal(extract(items[5:16], None, "x"), whole[5:16])


def test_independent_of_the_number_of_workers(small_clip, items):
    assert torch.equal(extractor(small_clip, workers=2)(items, None, "x"), extractor(small_clip)(items, None, "x"))


def test_cold_and_warm_are_bit_identical(small_clip, items, tmp_path, monkeypatch):
    plain = extractor(small_clip)(items, None, "x")
    options = {"cached": True, "cache_dir": str(tmp_path)}
    assert torch.equal(extractor(small_clip, **options)(items, None, "x"), plain)
    forbid_encoding(monkeypatch)
    assert torch.equal(extractor(small_clip, **options)(items, None, "x"), plain)
    assert torch.equal(extractor(small_clip, **options)(items[3:9], None, "x"), plain[3:9])


@pytest.mark.parametrize("kinds", [("raw", "normalized"), ("normalized", "raw")])
def test_raw_and_normalized_features_are_made_of_one_entry(small_clip, items, tmp_path, monkeypatch, kinds):
    first, second = (extractor(small_clip, cached=True, cache_dir=str(tmp_path), kind=kind) for kind in kinds)
    made = {kinds[0]: first(items, None, "x")}
    forbid_encoding(monkeypatch)
    made[kinds[1]] = second(items, None, "x")
    assert (made["raw"].norm(dim=1) - 1).abs().min() > 0.1
    assert torch.equal(torch.nn.functional.normalize(made["raw"], dim=1), made["normalized"])


def test_only_what_is_missing_is_encoded(small_clip, items, tmp_path, monkeypatch):
    options = {"cached": True, "cache_dir": str(tmp_path)}
    extractor(small_clip, **options)(items[::2], None, "x")
    encoded = []
    original = FeatureExtractor._encode

    def count(self, images, rows, *others):
        encoded.append(len(rows))
        return original(self, images, rows, *others)

    monkeypatch.setattr(FeatureExtractor, "_encode", count)
    whole = extractor(small_clip, **options)(items, None, "x")
    assert encoded == [10]
    assert torch.equal(whole, extractor(small_clip)(items, None, "x"))


def test_two_runs_at_once_encode_each_image_once(small_clip, items, tmp_path, monkeypatch, caplog):
    """The second waits, and finds what the first has kept."""
    encode, batches, both = small_clip.encode_image, [], threading.Barrier(2)

    def slowly(images, **kind):
        batches.append(len(images))
        time.sleep(0.1)
        return encode(images, **kind)

    def start(_):
        both.wait()
        return extractor(small_clip, cached=True, cache_dir=str(tmp_path), dataset="pets")(items, None, "test")

    monkeypatch.setattr(small_clip, "encode_image", slowly)
    caplog.set_level("INFO", "coop")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(start, range(2)))
    assert len(batches) == math.ceil(len(items) / CPU_BATCH)
    assert torch.equal(*found)
    assert "another process is encoding images of pets; waiting for it" in caplog.text


def test_who_is_not_waited_for(tmp_path):
    """Another data set; and nobody, where the processes of one run would wait for each other at a collective."""
    cache, entered = FeatureCache(tmp_path), []
    with cache.alone("pets", wait=True):
        for dataset, wait in (("cars", True), ("pets", False)):
            with FeatureCache(tmp_path).alone(dataset, wait):
                entered.append(dataset)
    assert entered == ["cars", "pets"]


def test_a_changed_image_is_encoded_again(small_clip, items, tmp_path):
    path = tmp_path / "image.png"
    item = [items[0]._replace(path=str(path))]
    options = {"cached": True, "cache_dir": str(tmp_path / "cache")}
    Image.open(items[0].path).save(path)
    first = extractor(small_clip, **options)(item, None, "x")
    Image.open(items[1].path).save(path)
    os.utime(path, ns=(0, 12345))
    second = extractor(small_clip, **options)(item, None, "x")
    assert torch.equal(second, extractor(small_clip)([items[1]], None, "x"))
    assert (first - second).abs().max() > 1e-3


def test_changed_weights_are_another_entry(small_clip, items, tmp_path):
    options = {"cached": True, "cache_dir": str(tmp_path)}
    extractor(small_clip, **options)(items[:4], None, "x")
    model = small.small_clip()
    with torch.no_grad():
        model.visual.proj[0] += 0.1
    other = FrozenCLIP(model, small.tokenizer())
    assert torch.equal(extractor(other, **options)(items[:4], None, "x"), extractor(other)(items[:4], None, "x"))


def test_another_activation_is_another_entry(small_clip, items, tmp_path):
    """The weights are equal, the features are not."""
    options = {"cached": True, "cache_dir": str(tmp_path)}
    extractor(small_clip, **options)(items[:4], None, "x")
    model = open_clip.CLIP(**{**small.MODEL_CFG, "quick_gelu": False}).eval()
    model.load_state_dict(small.small_clip().state_dict())
    other = FrozenCLIP(model, small.tokenizer())
    assert torch.equal(extractor(other, **options)(items[:4], None, "x"), extractor(other)(items[:4], None, "x"))


@pytest.mark.parametrize("shift", sorted(SHIFTS))
def test_a_shifted_set_is_another_entry(small_clip, items, tmp_path, shift):
    options = {"cached": True, "cache_dir": str(tmp_path)}
    plain = extractor(small_clip, **options)(items[:4], None, "x")
    shifted = extractor(small_clip, **options)(items[:4], SHIFTS[shift], "x")
    assert torch.equal(shifted, extractor(small_clip)(items[:4], SHIFTS[shift], "x"))
    assert (shifted - plain).abs().max() > 1e-3


def test_views_differ_and_repeat(small_clip, items, tmp_path, monkeypatch):
    options = {"cached": True, "cache_dir": str(tmp_path)}
    views = [extractor(small_clip)(items, None, "x", view) for view in range(3)]
    assert all((a - b).abs().max() > 1e-3 for a, b in ((views[0], views[1]), (views[1], views[2])))
    torch.manual_seed(99)
    torch.rand(7)
    for view in range(3):
        assert torch.equal(extractor(small_clip, workers=2)(items, None, "x", view), views[view])
        assert torch.equal(extractor(small_clip, **options)(items, None, "x", view), views[view])
    forbid_encoding(monkeypatch)
    assert torch.equal(extractor(small_clip, **options)(items, None, "x", 1), views[1])


def test_a_view_from_the_cache_is_the_view_without_it(small_clip, items, tmp_path):
    """Whatever a view depends on is part of what it is found by: here the name of the class."""
    options = {"cached": True, "cache_dir": str(tmp_path)}
    extractor(small_clip, **options)(items[:4], None, "x", 0)
    renamed = [item._replace(classname=f"other {item.classname}") for item in items[:4]]
    cached = extractor(small_clip, **options)(renamed, None, "x", 0)
    assert torch.equal(cached, extractor(small_clip)(renamed, None, "x", 0))


def test_random_numbers_of_the_run_are_left_alone(small_clip, items, monkeypatch):
    """Also those of its GPUs, of which dropout draws."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    monkeypatch.setattr("torch.cuda.manual_seed_all", lambda _: pytest.fail("a GPU was seeded"))
    extractor(small_clip)(items[:3], None, "x", 0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_float32_and_another_entry(small_clip, items, tmp_path, dtype):
    options = {"cached": True, "cache_dir": str(tmp_path)}
    plain = extractor(small_clip, **options)(items[:4], None, "x")
    mixed = extractor(small_clip, autocast=dtype, **options)(items[:4], None, "x")
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - plain).abs().max() < 1e-2


def test_where_features_are_kept_is_said_once(small_clip, items, tmp_path, caplog):
    caplog.set_level("INFO", logger="coop")
    for number in (1, 2):
        extractor(small_clip, cached=True, cache_dir=str(tmp_path))(items[:number], None, "x")
    assert [record.message for record in caplog.records] == [
        f"image features are kept in {tmp_path} (0 bytes so far; python -m coop.cache shows and clears them; "
        "features=online: none kept)"
    ]


def test_a_cache_that_cannot_be_written_costs_one_warning(small_clip, items, tmp_path, caplog):
    (tmp_path / "file").touch()
    extract = extractor(small_clip, cached=True, cache_dir=str(tmp_path / "file" / "cache"))
    expected = extractor(small_clip)(items, None, "x")
    for view in (None, 0, None):
        features = extract(items, None, "x", view)
        assert torch.equal(features, expected) == (view is None)
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("features are not kept for later runs: ") and "a part of this path is a file" in warning


def test_no_images_no_features(small_clip):
    assert len(extractor(small_clip)([], None, "x")) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(small_clip, items, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # torch waits so long for each worker
    path = tmp_path / "cut.jpg"
    Image.open(items[0].path).save(path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(CoopError, match=r"cut\.jpg: not a readable image"):
        extractor(small_clip, workers=workers)([*items[:2], items[0]._replace(path=str(path))], None, "x")
    gc.collect()  # ends the worker now


def test_a_preprocess_of_ones_own_is_seen(small_clip, items):
    inverted = extractor(small_clip)(items[:2], ImageOps.invert, "x")
    assert (inverted - extractor(small_clip)(items[:2], None, "x")).abs().max() > 1e-3


def test_tf32_is_in_the_key_of_what_a_gpu_computes(small_clip):
    """No GPU is needed to name an entry. On a CPU tf32 changes nothing, and neither does the key."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before, entries = (matmul.allow_tf32, cudnn.allow_tf32), {}
    try:
        for device, *allowed in itertools.product(("cpu", "cuda"), (False, True), (False, True)):
            matmul.allow_tf32, cudnn.allow_tf32 = allowed
            entry = FeatureExtractor(small_clip, torch.device(device), 0).entry(None, None)
            entries.setdefault(device, []).append(entry.folder)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
    assert len(set(entries["cpu"])) == 1
    assert len(set(entries["cuda"])) == 4
    assert len({*entries["cpu"], *entries["cuda"]}) == 5


def test_local_features_are_kept_like_the_pooled_ones(small_clip, items, tmp_path, monkeypatch):
    """Bit for bit, and neither kind is taken for the other."""
    kinds = ("tokens", "normalized", "raw")
    kept = {"cached": True, "cache_dir": str(tmp_path)}
    first = {kind: extractor(small_clip, kind=kind, **kept)(items, None, "x") for kind in kinds}
    assert first["tokens"].shape == (21, 5, 64)
    assert torch.allclose(first["tokens"][:, 0], first["normalized"], atol=1e-6)
    assert torch.allclose(first["tokens"].norm(dim=-1), torch.ones(21, 5), atol=1e-5)
    forbid_encoding(monkeypatch)
    for kind in kinds:
        assert torch.equal(extractor(small_clip, kind=kind, **kept)(items[::-1], None, "x"), first[kind].flip(0))


@pytest.mark.parametrize("kind", ["tokens", "normalized"])
def test_more_features_than_memory_should_hold_lie_in_a_file_without_a_name(
    small_clip, items, tmp_path, monkeypatch, kind
):
    expected = extractor(small_clip, kind=kind)(items, None, "x")
    monkeypatch.setattr(features, "MOST_IN_MEMORY", 1000)
    made = []
    monkeypatch.setattr(np, "memmap", lambda *args, real=np.memmap, **options: made.append(1) or real(*args, **options))
    assert torch.equal(extractor(small_clip, kind=kind, cache_dir=str(tmp_path))(items, None, "x"), expected)
    assert made and not list(tmp_path.iterdir())


def test_a_disk_without_room_for_them_is_one_message(small_clip, items, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "MOST_IN_MEMORY", 1000)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        CoopError, match=r"no room for the features of 21 images, 0 GB \(No space left on device\); give"
    ):
        extractor(small_clip, kind="tokens", cache_dir=str(tmp_path))(items, None, "x")
