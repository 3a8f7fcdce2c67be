"""Batches: the same whatever the number of devices, of workers, and after a resume."""

import gc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from small_clip import tokenizer
from torch.utils.data import DistributedSampler

from coop import CoopError, FrozenCLIP, Item
from coop.cli.messages import explain
from coop.data.datamodule import AugmentedImages, EpochSampler, FeatureSet, FewShotData
from coop.data.features import FeatureExtractor
from coop.data.sampling import Splits
from coop.data.transforms import train_transform

NAMES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    """A CLIP of this module's own: a data module may free its image tower."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    return FrozenCLIP(open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text), tokenizer())


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[Item]:
    folder = tmp_path_factory.mktemp("images")
    made = []
    for index in range(21):
        path = folder / f"{index}.png"
        Image.fromarray(np.random.RandomState(index).randint(0, 256, (48, 40, 3), dtype=np.uint8)).save(path)
        made.append(Item(str(path), index % 3, NAMES[index % 3]))
    return made


@pytest.fixture
def make(clip, items, monkeypatch):
    monkeypatch.setattr(FrozenCLIP, "release_image_tower", lambda self: None, raising=False)

    def made(train=13, augmentation="none", batch_size=4, workers=0, seed=1, world=1, rank=0, val=4, **options):
        splits = Splits(items[:train], items[13 : 13 + val], items[17:], NAMES)
        extractor = FeatureExtractor(clip, device=torch.device("cpu"), num_workers=0)
        data = FewShotData(splits, extractor, seed, augmentation, batch_size, workers, **options)
        at_start = SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)))
        data.trainer = SimpleNamespace(world_size=world, global_rank=rank, fit_loop=at_start)
        data.setup("fit")
        return data

    return made


def epoch_of(data: FewShotData, epoch: int) -> list[dict[str, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def rows(batch: dict[str, torch.Tensor]) -> list[tuple]:
    """A batch as a sorted list, so that two can be compared whatever their order."""
    key = "image" if "image" in batch else "image_features"
    return sorted(
        (label, *row) for label, row in zip(batch["label"].tolist(), batch[key].flatten(1).tolist(), strict=True)
    )


@pytest.mark.parametrize("augmentation", ["none", "views:3", "online"])
@pytest.mark.parametrize("train", [8, 9, 12, 13])
def test_two_devices_share_the_batches_of_one(make, train, augmentation):
    one = make(train, augmentation)
    two = [make(train, augmentation, world=2, rank=rank) for rank in (0, 1)]
    for epoch in (0, 1, 5):
        whole = epoch_of(one, epoch)
        halves = [epoch_of(data, epoch) for data in two]
        assert len(whole) == len(halves[0]) == len(halves[1]) == train // 4
        for step, left, right in zip(whole, *halves, strict=True):
            assert len(left["label"]) == len(right["label"]) == 2
            union = {key: torch.cat([left[key], right[key]]) for key in step}
            assert rows(union) == rows(step)


@pytest.mark.parametrize(
    ("train", "sizes"),
    [(13, [4, 4, 4]), (12, [4, 4, 4]), (9, [4, 4]), (5, [4]), (4, [4]), (3, [3]), (1, [1])],
)
def test_the_last_incomplete_batch_is_dropped_unless_it_is_the_only_one(make, train, sizes):
    assert [len(batch["label"]) for batch in epoch_of(make(train), 0)] == sizes


def test_an_epoch_sees_every_image_once_in_an_order_of_its_own(make):
    data = make(12)
    expected = sorted(zip(data.labeled("train")[1].tolist(), data.labeled("train")[0][0].tolist(), strict=True))
    orders = []
    for epoch in range(3):
        batches = epoch_of(data, epoch)
        seen = [
            (label, row)
            for batch in batches
            for label, row in zip(batch["label"].tolist(), batch["image_features"].tolist(), strict=True)
        ]
        orders.append(seen)
        assert sorted(seen) == expected
    assert orders[0] != orders[1] != orders[2]
    assert [rows(batch) for batch in epoch_of(data, 1)] == [rows(batch) for batch in epoch_of(make(12), 1)]
    assert [rows(batch) for batch in epoch_of(data, 1)] != [rows(batch) for batch in epoch_of(make(12, seed=2), 1)]


def test_the_order_does_not_depend_on_the_global_generator(make):
    torch.manual_seed(0)
    first = [rows(batch) for batch in epoch_of(make(12), 3)]
    torch.manual_seed(1)
    assert [rows(batch) for batch in epoch_of(make(12), 3)] == first


def test_sampler_is_distributed_samplers_order_with_the_epoch(items):
    ours, torchs = EpochSampler(items, 2, 1, seed=7), DistributedSampler(items, 2, 1, seed=7)
    for sampler in (ours, torchs):
        sampler.set_epoch(4)
    assert list(ours) == [(4, index) for index in torchs]


def test_a_batch_that_devices_cannot_share_is_refused(make):
    with pytest.raises(CoopError, match="batch_size=5: must be a multiple of the 2 devices"):
        make(batch_size=5, world=2).train_dataloader()


# Views


def test_views_are_a_function_of_seed_epoch_and_index(make):
    data = make(12, "views:3")
    features, _ = data.labeled("train")
    assert features.shape == (3, 12, 16)
    lookup = {tuple(row.tolist()): (view, index) for view in range(3) for index, row in enumerate(features[view])}

    def chosen(source, epoch):
        found = [lookup[tuple(row.tolist())] for batch in epoch_of(source, epoch) for row in batch["image_features"]]
        return {index: view for view, index in found}

    first = chosen(data, 4)
    assert sorted(first) == list(range(12))
    assert chosen(data, 4) == first
    assert chosen(make(12, "views:3", batch_size=12), 4) == first, "whatever the batch size"
    assert chosen(data, 5) != first
    assert chosen(make(12, "views:3", seed=2), 4) != first
    counts = torch.zeros(3)
    for epoch in range(40):
        for view in chosen(data, epoch).values():
            counts[view] += 1
    assert counts.min() > 480 / 3 * 0.8, f"views are drawn evenly: {counts.tolist()}"


def test_one_view_is_the_test_transform(make, clip, items):
    features, labels = make(12).labeled("train")
    transform = open_clip.transform.image_transform_v2(clip.preprocess_cfg, is_train=False)
    for item, row, label in zip(items, features[0], labels.tolist(), strict=False):
        expected = clip.encode_image(transform(Image.open(item.path).convert("RGB"))[None])[0]
        assert torch.allclose(row, expected, atol=1e-6)
        assert label == item.label


# Augmentation


def images_of(data: FewShotData, epoch: int) -> list[tuple]:
    return [row for batch in epoch_of(data, epoch) for row in rows(batch)]


def test_augmentation_is_the_same_whatever_the_number_of_workers(make):
    expected = images_of(make(8, "online"), 3)
    for workers in (1, 2):
        torch.manual_seed(workers)
        assert images_of(make(8, "online", workers=workers), 3) == expected
    assert images_of(make(8, "online"), 4) != expected
    assert images_of(make(8, "online", seed=2), 3) != expected


def test_augmentation_is_the_same_after_a_resume_in_the_middle(make):
    unbroken = make(8, "online", workers=1)
    loader = unbroken.train_dataloader()
    epochs = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        epochs.append([rows(batch) for batch in loader])
    resumed = [rows(batch) for batch in epoch_of(make(8, "online", workers=1), 2)]
    assert resumed == epochs[2]


def test_the_papers_augmentation(clip, items):
    """A crop of at least 8 % of the area, a flip in half of the cases, the model's own mean and std."""
    data = AugmentedImages(Splits(items[:1], [], [], NAMES), train_transform(clip.preprocess_cfg), seed=1)
    views = torch.stack([data[epoch, 0]["image"] for epoch in range(60)])
    assert views.shape == (60, 3, 32, 32)
    assert len({view.numpy().tobytes() for view in views}) == 60
    crop, flip, _, normalize = train_transform(clip.preprocess_cfg).transforms
    assert (tuple(crop.size), tuple(crop.scale), crop.interpolation.value) == ((32, 32), (0.08, 1.0), "bicubic")
    assert flip.p == 0.5
    assert (tuple(normalize.mean), tuple(normalize.std)) == (
        tuple(clip.preprocess_cfg.mean),
        tuple(clip.preprocess_cfg.std),
    )


# Validation and test


@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_validates_on_every_image_once(make, rank):
    data = make(val=3, world=2, rank=rank)
    (batch,) = list(data.val_dataloader())
    features, labels = data.labeled("val")
    assert torch.equal(batch["label"], labels)
    assert torch.equal(batch["image_features"], features[0])


@pytest.mark.parametrize(
    ("train", "views", "sizes"), [(3, 4, [4]), (3, 1, [3]), (4, 3, [4]), (6, 5, [4]), (9, 2, [4, 4])]
)
def test_pooled_views_fill_a_batch(make, train, views, sizes):
    """As many steps as the images have batches, each of a full batch if there are views enough (CLAP's authors)."""
    data = make(train, f"views:{views}" if views > 1 else "none")
    data.view_sampling = "pooled"
    seen = set()
    for epoch in range(30):
        batches = epoch_of(data, epoch)
        assert [len(batch["label"]) for batch in batches] == sizes
        drawn = [tuple(row) for batch in batches for row in batch["image_features"].tolist()]
        assert len(set(drawn)) == len(drawn), "no view twice"
        seen |= set(drawn)
    assert len(seen) == train * views, "all are drawn in the end"


def test_no_validation_images(make):
    data = make(val=0)
    assert data.val_dataloader() == []
    assert len(data.labeled("val")[1]) == 0


def test_test_images_are_encoded_once_whoever_asks_first(clip, items):
    splits = Splits(items[:4], items[4:6], items[17:], NAMES)
    asked = []

    def extractor(images, preprocess, label, view=None):
        asked.append(label)
        return torch.full((len(images), 16), float(len(asked)))

    extractor.clip = clip
    data = FewShotData(splits, extractor, 1, "online", 4, 0, targets={"elsewhere": splits})
    assert data.test_features("elsewhere").shape == (4, 16), "without a Trainer"
    data.setup("fit")
    assert asked == ["elsewhere", "test images", "validation images"], "before the first step"
    assert (data.test_features()[0, 0], data.test_features("elsewhere")[0, 0]) == (2, 1)


def test_feature_set_gives_whole_batches(items):
    features = torch.arange(24.0).view(2, 4, 3)
    dataset = FeatureSet(features, items[:4], seed=1)
    batch = dataset.__getitems__([(0, 3), (0, 1), (9, 3)])
    assert batch["label"].tolist() == [0, 1, 0]
    for row, index in zip(batch["image_features"], (3, 1, 3), strict=True):
        assert any(torch.equal(row, features[view, index]) for view in (0, 1))


# Errors


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_whatever_process_opens_it(make, items, tmp_path, workers, monkeypatch):
    """Through `explain`, which takes the worker's own traceback off."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # torch waits so long for each worker
    data = make(8, "online", workers=workers)
    path = tmp_path / "cut.png"
    path.write_bytes(Path(items[0].path).read_bytes()[:300])
    data.train_set.items = [*data.train_set.items[:5], items[0]._replace(path=str(path)), *data.train_set.items[6:]]
    with pytest.raises(CoopError) as caught:
        epoch_of(data, 0)
    said = explain(caught.value)
    assert said.startswith(f"{path}: not a readable image")
    assert "Traceback" not in said
    assert "worker" not in said
    del caught
    gc.collect()


def test_a_damaged_test_image_is_found_before_the_first_step(clip, items, tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(b"")
    splits = Splits(items[:4], items[4:6], [items[0]._replace(path=str(path))], NAMES)
    extractor = FeatureExtractor(clip, device=torch.device("cpu"), num_workers=0)
    data = FewShotData(splits, extractor, 1, "online", 4, 0)
    data.trainer = SimpleNamespace(
        world_size=1, global_rank=0, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    with pytest.raises(CoopError, match=r"cut\.png: not a readable image"):
        data.setup("fit")
