"""Image features of fixed views: the frozen image tower run once over a list of images."""

import hashlib
import inspect
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from coop.clip.backbone import FeatureKind, FrozenCLIP
from coop.data import processes as shares
from coop.data.feature_cache import NO_FILE, FeatureCache, ShardWriter, default_cache_dir, show_once
from coop.data.images import Preprocess, open_image
from coop.data.sampling import Item
from coop.data.transforms import reproducible, test_transform, train_transform
from coop.errors import CoopError
from coop.system.progress import progress

# Small batches stay in a CPU's caches: several times faster there than batches that suit a GPU.
CPU_BATCH, GPU_BATCH = 8, 128
#: Bytes of features; local ones of 50 000 images take 10 GB and more.
MOST_IN_MEMORY = 2**31


@dataclass
class FeatureExtractor:
    """Encodes images of fixed views, and says how long that took and how many images were not in the cache."""

    clip: FrozenCLIP  # moved to `device` when there is something to encode
    device: torch.device
    num_workers: int  # processes that decode
    autocast: torch.dtype | None = None  # of mixed precision, so that features are those of a training step
    cached: bool = False  # keep features on disk and take them from there
    cache_dir: str | None = None  # None for the default
    encode: Callable[[Tensor], Tensor] | None = None  # in place of `clip.encode_image`; goes with `cached=False`
    dataset: str | None = None  # its name, for whoever looks into the cache
    kind: FeatureKind = "normalized"
    skip_unreadable: bool = False  # give such an image features of NaN, which are not kept, instead of raising
    seconds: float = 0.0
    encoded: int = 0

    def __call__(
        self, images: Sequence[Item | str], preprocess: Preprocess | None, label: str, view: int | None = None
    ) -> Tensor:
        """image_features (N, E), or as `kind` says, float32, on the CPU.

        With several processes each encodes its share; all of them get all features.

        Args:
            images: items, or paths alone.
            preprocess: applied to each opened image first.
            label: which images these are, for the progress bar and for whoever looks into the cache.
            view: None for the test transform, else the number of a random view that is the same in every run.

        Raises:
            CoopError: an image that cannot be read (which one, and what to do).
        """
        if not images:
            return torch.empty(0, 0)
        paths = [image if isinstance(image, str) else image.path for image in images]
        started = time.perf_counter()
        features = self._features(FixedViews(paths, preprocess, self.clip, view, self.skip_unreadable), label)
        self.seconds += time.perf_counter() - started
        return features

    def _features(self, images: "FixedViews", label: str) -> Tensor:
        shape, world = self.shape, shares.world()
        features = self._room(len(images), math.prod(shape))
        with ExitStack() as until_kept:
            found, writer = self._look_up(images, label, features, until_kept)
            missing = np.flatnonzero(~found)
            share = missing[shares.rank() :: world]
            if len(missing):
                self.clip.to(self.device)
            if len(share):
                self._encode(images, share, features, label, writer)
        self.encoded += len(missing)
        owner = np.zeros(len(images), int)  # what is in the cache comes from the first process
        owner[missing] = np.arange(len(missing)) % world
        shares.exchange(features, owner, self.device)
        features = features.view(-1, *shape)
        # In place: of a million images features take gigabytes.
        return F.normalize(features, dim=-1, out=features) if self.kind != self.encoded_kind else features

    def _room(self, count: int, size: int) -> Tensor:
        """Room for features (count, size): much of it in a file without a name, which leaves memory as others need it.

        Raises:
            CoopError: the cache's disk has not so much room.
        """
        if (wanted := 4 * count * size) <= MOST_IN_MEMORY:
            return torch.empty(count, size)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=self._root)  # noqa: SIM115 - as long as the array
            if hasattr(os, "posix_fallocate"):  # a disk that is full later ends the process without a word
                os.posix_fallocate(file.fileno(), 0, wanted)
        except OSError as error:
            raise CoopError(
                f"{self._root}: no room for the features of {count} images, {wanted / 1e9:.0f} GB ({error.strerror}); "
                "give cache_dir=DIR on a larger disk"
            ) from error
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(count, size)))

    @property
    def _root(self) -> Path:
        return Path(self.cache_dir).expanduser() if self.cache_dir else default_cache_dir()

    @property
    def encoded_kind(self) -> FeatureKind:
        """What is encoded and kept: normalized features are made of raw ones, so that the same serve both kinds."""
        return "raw" if self.kind == "normalized" and self.encode is None else self.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the features of one image."""
        if self.kind in ("normalized", "raw"):
            return (self.clip.embed_dim,)
        blank = torch.zeros(1, 3, *image_size(self.clip), device=self.device)
        return tuple(self.clip.to(self.device).encode_image(blank, self.kind).shape[1:])

    def _look_up(
        self, images: "FixedViews", label: str, features: Tensor, until_kept: ExitStack
    ) -> tuple[np.ndarray, ShardWriter | None]:
        """Which images are in the cache (N), the same in all processes, and who keeps the others.

        The first process alone reads, and fills in its `features`: another run may write between two look-ups. Where
        images are missing, other runs are kept from encoding them until `until_kept` ends.
        """
        found = np.zeros(len(images), bool)
        if not self.cached:
            return found, None
        cache = self.entry(images.preprocess, images.view)
        about = {"backbone": self.clip.name, "images": f"{self.dataset or ''} {label}".strip()}
        writer = ShardWriter(cache, images.paths, features, about)
        if shares.rank() == 0:
            show_once(cache.root)
            identities = writer.identify(np.arange(len(images)))
            found = cache.lookup(identities, features)
            if not found.all():
                # Not while the other processes of this run wait at a collective, which gives up after half an hour.
                until_kept.enter_context(cache.alone(self.dataset, wait=shares.world() == 1))
                found |= cache.lookup(np.where(found, NO_FILE, identities), features)
        return shares.as_first_process_says(found, self.device), writer

    def entry(self, preprocess: Preprocess | None, view: int | None) -> FeatureCache:
        """Where features of such a view are kept."""
        source, precision = preprocess and _source(preprocess), (str(self.autocast), self.device.type)
        key = (self.clip.fingerprint(), source, view, *precision, self.encoded_kind, *_tf32(self.device))
        return FeatureCache(self._root, *key)

    @torch.no_grad()
    def _encode(
        self, images: Dataset, rows: np.ndarray, features: Tensor, label: str, writer: ShardWriter | None
    ) -> None:
        """Encode some of the images into their rows of the features (N, E), which the writer keeps as they come."""
        device, encode, done = self.device, self.encode or partial(self.clip.encode_image, kind=self.encoded_kind), 0
        batch_size = CPU_BATCH if device.type == "cpu" else GPU_BATCH
        loader = DataLoader(
            Subset(images, rows),
            batch_size,
            num_workers=self.num_workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # the run's own random numbers stay as they are
        )
        precision = torch.autocast(device.type, self.autocast) if self.autocast else nullcontext()
        bar = progress(total=len(rows), desc=label, unit="image", hidden=shares.rank() != 0, leave=False)
        if writer:
            writer.identify(rows)
        with precision, bar, writer or nullcontext():
            for batch in loader:
                # Always a full batch: kernels differ with its size, and features must not depend on an image's company.
                full = batch[torch.arange(batch_size) % len(batch)].to(device, non_blocking=True)
                now = rows[done : done + len(batch)]
                encoded = encode(full)[: len(batch)].flatten(1).float().cpu()
                features[torch.from_numpy(now)] = encoded
                done += len(batch)
                if writer:
                    writer.computed(now[encoded.isfinite().all(dim=1).numpy()])
                bar.update(len(batch))


def image_size(clip: FrozenCLIP) -> tuple[int, int]:
    """Height and width that the image tower takes."""
    size = clip.preprocess_cfg.size
    return (size, size) if isinstance(size, int) else tuple(size)


class FixedViews(Dataset):
    """One fixed view (3, H, W) of each image."""

    def __init__(
        self,
        paths: Sequence[str],
        preprocess: Preprocess | None,
        clip: FrozenCLIP,
        view: int | None,
        skip_unreadable: bool = False,
    ):
        self.paths, self.preprocess, self.view = paths, preprocess, view
        make = test_transform if view is None else train_transform
        self.transform = make(clip.preprocess_cfg)
        self.in_place_of_unreadable = torch.full((3, *image_size(clip)), torch.nan) if skip_unreadable else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        path = self.paths[index]
        try:
            image = open_image(path, self.preprocess)
        except CoopError:
            if self.in_place_of_unreadable is None:
                raise
            return self.in_place_of_unreadable
        return reproducible(self.transform, image, "view", self.view, *Path(path).parts[-2:])


def _source(function: Preprocess) -> tuple[str, str]:
    """A function by name and by the content of its module: other constants there make other features."""
    content = Path(inspect.getsourcefile(function)).read_bytes()
    return function.__qualname__, hashlib.sha256(content).hexdigest()


def _tf32(device: torch.device) -> tuple[str, ...]:
    """What the cache's key says of 32-bit products with 10 bits of mantissa: nothing where there are none."""
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if device.type != "cuda" or not any(allowed):
        return ()
    return tuple(f"tf32 {name}" for name, is_on in zip(("matmul", "cudnn"), allowed, strict=True) if is_on)
