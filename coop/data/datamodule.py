"""The few-shot data of one run, as Lightning wants it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from coop.config import autocast_dtype, parse_augmentation
from coop.data.features import FeatureExtractor, FixedViews
from coop.data.images import open_image
from coop.data.sampling import Item, Splits
from coop.data.transforms import Transform, reproducible, stable_seed, train_transform
from coop.errors import CoopError
from coop.methods import Method


@dataclass(eq=False, repr=False)
class FewShotData(pl.LightningDataModule):
    """Batches {"image" or "image_features", "label"} for training and validation, and the features of test images.

    Whatever has a fixed view is encoded once, before the first step. With `views:V` and `view_sampling="per_image"`, an
    epoch sees one view of each image; with "pooled", a random sample of the V * N views, as many as there are images,
    but at least one full batch (CLAP, Silva-Rodriguez et al., CVPR 2024).
    """

    splits: Splits  # sampled images: `train` and `val` hold the shots
    extractor: FeatureExtractor  # encodes images of fixed views
    seed: int  # of order and augmentation
    augmentation: str  # "online", "none" or "views:V"
    batch_size: int  # images per step, over all devices together
    num_workers: int  # processes that decode training images
    with_images: bool = False  # batches bring images, for a method that needs them
    with_teacher: bool = False  # batches of fixed views bring the frozen CLIP's features of them, too
    view_sampling: str = "per_image"
    validation: bool = True  # whether anything may be chosen on the validation images
    targets: Mapping[str, Splits] = field(default_factory=dict)  # further data sets to test on, by name

    def __post_init__(self):
        super().__init__()
        self.views = parse_augmentation(self.augmentation)
        self._test_features: dict[str | None, Tensor] = {}
        self.train_set: Dataset | None = None

    def test_features(self, target: str | None = None) -> Tensor:
        """The frozen CLIP's features (N, E) of the test images, or a target's; encoded when first asked for."""
        if target not in self._test_features:
            splits = self.splits if target is None else self.targets[target]
            self._test_features[target] = self.extractor(splits.test, splits.preprocess, target or "test images")
        return self._test_features[target]

    def setup(self, stage: str) -> None:
        if self.train_set is not None:
            return
        clip, splits = self.extractor.clip, self.splits
        # Ahead of evaluation: an unreadable image ends the run before its first step, and the image tower can go.
        for target in (None, *self.targets):
            self.test_features(target)
        self.val_features = self.extractor(splits.val, splits.preprocess, "validation images")[None]
        self.val_set: Dataset = FeatureSet(self.val_features, splits.val, self.seed)
        if self.views is None:
            self.train_set = AugmentedImages(splits, train_transform(clip.preprocess_cfg), self.seed)
        elif self.with_images:
            features = self._train_views() if self.with_teacher else None
            self.train_set = self._fixed_views(splits.train, [None] if self.views == 1 else range(self.views), features)
        else:
            self.train_set = FeatureSet(self._train_views(), splits.train, self.seed)
            if self.extractor.kind != "last_layer":  # which is still needed
                clip.release_image_tower()
        if self.with_images:
            self.val_set = self._fixed_views(splits.val, [None])

    def labeled(self, part: str) -> tuple[Tensor, Tensor]:
        """Features (V, N, E) of the fixed views of the "train" or "val" images, and labels (N).

        With online augmentation, and for methods that train an image encoder, the one view of the test transform.
        """
        if part == "val" and not self.validation:
            return self.val_features[:, :0], self.splits.labels(part)[:0]
        if part == "val":
            features = self.val_features
        elif isinstance(self.train_set, FeatureSet):
            features = self.train_set.features
        else:
            features = self.extractor(self.splits.train, self.splits.preprocess, "training images")[None]
        return features, self.splits.labels(part)

    def _fixed_views(
        self, items: Sequence[Item], views: Iterable[int | None], features: Tensor | None = None
    ) -> "ViewedImages":
        clip, preprocess, paths = self.extractor.clip, self.splits.preprocess, [item.path for item in items]
        images = [FixedViews(paths, preprocess, clip, view) for view in views]
        return ViewedImages(images, [item.label for item in items], self.seed, features)

    def _train_views(self) -> Tensor:
        """Features (V, N, E) of the fixed views of the training images."""
        train, preprocess = self.splits.train, self.splits.preprocess
        if self.views == 1:
            return self.extractor(train, preprocess, "training images")[None]
        return torch.stack(
            [self.extractor(train, preprocess, f"view {view + 1} of {self.views}", view) for view in range(self.views)]
        )

    def train_dataloader(self) -> DataLoader:
        world, rank = self.trainer.world_size, self.trainer.global_rank
        if self.batch_size % world:
            raise CoopError(
                f"batch_size={self.batch_size}: must be a multiple of the {world} devices, which share each batch"
            )
        # The original drops the last incomplete batch, unless it is the only one.
        drop_last = len(self.train_set) >= self.batch_size
        options = {"num_replicas": world, "rank": rank, "seed": self.seed, "drop_last": drop_last}
        if self.view_sampling == "pooled":
            sampler: EpochSampler = PooledViews(self.train_set, self.views, self.batch_size, **options)
        else:
            sampler = EpochSampler(self.train_set, **options)
        # Workers read ahead before Lightning tells the sampler which epoch a resumed run is in.
        sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        return DataLoader(
            self.train_set,
            batch_size=self.batch_size // world,
            sampler=sampler,
            drop_last=drop_last,
            **self._loading(self.train_set),
        )

    def val_dataloader(self) -> DataLoader | list:
        if not (self.splits.val and self.validation):
            return []
        # Every process sees all of them: shares of equal size would count some images twice.
        sampler = EpochSampler(self.val_set, num_replicas=1, rank=0, shuffle=False)
        batch_size = self.batch_size if self.with_images else 1024
        return DataLoader(self.val_set, batch_size=batch_size, sampler=sampler, **self._loading(self.val_set))

    def _loading(self, dataset: Dataset) -> dict:
        if isinstance(dataset, FeatureSet):
            return {"collate_fn": whole_batch}
        pin_memory = self.extractor.device.type == "cuda"
        return {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0, "pin_memory": pin_memory}


def build_data(
    cfg: DictConfig, splits: Splits, targets: Mapping[str, Splits], method: Method, device: torch.device
) -> FewShotData:
    """The batches and features of a run."""
    precision, cached = autocast_dtype(cfg.trainer.precision), cfg.features == "cached"
    kept = {"cached": cached, "cache_dir": cfg.cache_dir, "dataset": cfg.dataset.name}
    extractor = FeatureExtractor(method.clip, device, cfg.num_workers, precision, kind=method.feature_kind, **kept)
    return FewShotData(
        splits,
        extractor,
        cfg.seed,
        cfg.augmentation,
        cfg.batch_size,
        cfg.num_workers,
        with_images=method.needs_images,
        with_teacher=method.needs_teacher,
        view_sampling=cfg.view_sampling,
        validation=cfg.validation == "choose",
        targets=targets,
    )


class EpochSampler(DistributedSampler):
    """Yields (epoch, index), so that what an image becomes is a function of seed, epoch and index alone."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


class PooledViews(EpochSampler):
    """Yields (epoch, index, view): a random sample of all V views of all N images.

    As many as there are images, but a full batch if there are views enough (so with the authors of CLAP).
    """

    def __init__(self, dataset: Dataset, views: int, batch_size: int, **options):
        super().__init__(dataset, **options)
        self.views, self.count = views, min(views * len(dataset), max(len(dataset), batch_size))
        self.num_samples = -(-self.count // self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        count = len(self.dataset)
        order = torch.randperm(self.views * count, generator=generator)[: self.count]
        order = order.repeat(-(-self.total_size // self.count))[: self.total_size][self.rank :: self.num_replicas]
        return ((self.epoch, row % count, row // count) for row in order.tolist())


class AugmentedImages(Dataset):
    """Training images with a new random view in every epoch (the paper's augmentation)."""

    def __init__(self, splits: Splits, transform: Transform, seed: int):
        self.items, self.preprocess, self.transform, self.seed = splits.train, splits.preprocess, transform, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor | int]:
        epoch, index = key
        item = self.items[index]
        image = open_image(item.path, self.preprocess)
        return {"image": reproducible(self.transform, image, self.seed, epoch, index), "label": item.label}


@dataclass(eq=False)
class ViewedImages(Dataset):
    """Images decoded in every step; each epoch sees one of their V fixed views."""

    views: Sequence[FixedViews]  # V of them
    labels: Sequence[int]
    seed: int  # of the choice
    features: Tensor | None = None  # the frozen CLIP's (V, N, E), if batches bring them

    def __len__(self) -> int:
        return len(self.views[0])

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor | int]:
        view, index = chosen_view(self.seed, key, len(self.views)), key[1]
        brought = {"image": self.views[view][index], "label": self.labels[index]}
        return brought if self.features is None else brought | {"image_features": self.features[view, index]}


class FeatureSet(Dataset):
    """Features (V, N, E) in memory; each epoch sees one of the V views of each image."""

    def __init__(self, features: Tensor, items: Sequence[Item], seed: int):
        self.features, self.seed = features, seed
        self.labels = torch.tensor([item.label for item in items], dtype=torch.long)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        view = torch.tensor([chosen_view(self.seed, key, len(self.features)) for key in keys])
        index = torch.tensor([key[1] for key in keys])
        return {"image_features": self.features[view, index], "label": self.labels[index]}


def chosen_view(seed: int, key: tuple[int, ...], views: int) -> int:
    """Which of an image's views an epoch sees; `key` is (epoch, index), or (epoch, index, view)."""
    if len(key) == 3:
        return key[2]
    return stable_seed(seed, *key) % views if views > 1 else 0


def whole_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """`FeatureSet.__getitems__` has already made a batch."""
    return batch
