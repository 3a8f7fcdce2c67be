"""Image features of fixed views: the frozen image tower run once over a list of images."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from coop.clip.backbone import FrozenCLIP
from coop.data.cache import FeatureCache, default_cache_dir, identity
from coop.data.fewshot import Item
from coop.data.images import Preprocess, open_image
from coop.data.transforms import reproducible, test_transform, train_transform

# Small batches stay in a CPU's caches: several times faster there than batches that suit a GPU.
CPU_BATCH, GPU_BATCH = 8, 128


@dataclass
class FeatureExtractor:
    """Encodes images of fixed views.

    Args:
        clip: the frozen CLIP; moved to `device` when there is something to encode.
        device: where images are encoded.
        num_workers: processes that decode.
        autocast: dtype of mixed precision, None for the weights' own, so that features are those of a training step.
        cached: keep features on disk and take them from there.
        cache_dir: where; None for the default.
        encode: encodes images in place of `clip.encode_image`; belongs together with `cached=False`.
        dataset: the data set's name, for whoever looks into the cache.
    """

    clip: FrozenCLIP
    device: torch.device
    num_workers: int
    autocast: torch.dtype | None = None
    cached: bool = False
    cache_dir: str | None = None
    encode: Callable[[Tensor], Tensor] | None = None
    dataset: str | None = None

    def __call__(
        self, items: Sequence[Item], preprocess: Preprocess | None, label: str, view: int | None = None
    ) -> Tensor:
        """image_features (N, E), float32, on the CPU.

        With several processes each encodes its share; all of them get all features.

        Args:
            items: the images.
            preprocess: applied to each opened image first.
            label: which images these are, for the progress bar and for whoever looks into the cache.
            view: None for the test transform, else the number of a random view that is the same in every run.

        Raises:
            CoopError: an image that cannot be read (which one, and what to do).
        """
        images = FixedViews(items, preprocess, self.clip, view)
        if not items:
            return torch.empty(0, 0)
        if not self.cached:
            return self._encode(images, label)
        key = (self.clip.fingerprint(), preprocess and _source(preprocess), view)
        root = Path(self.cache_dir).expanduser() if self.cache_dir else default_cache_dir()
        cache = FeatureCache(root, *key, str(self.autocast), self.device.type)
        paths = [item.path for item in items]
        known = _same_everywhere(cache.lookup(paths))
        missing = [index for index in range(len(items)) if index not in known]
        if missing:
            before = [identity(paths[index]) for index in missing]
            new = self._encode(torch.utils.data.Subset(images, missing), label)
            known |= dict(zip(missing, new, strict=True))
            if _rank() == 0:
                # An image that was replaced meanwhile must not be found under its new identity.
                same = [n for n, index in enumerate(missing) if identity(paths[index]) == before[n]]
                if same:
                    about = {"backbone": self.clip.name, "images": f"{self.dataset or ''} {label}".strip()}
                    cache.add([paths[missing[n]] for n in same], new[same], about)
        return torch.stack([known[index] for index in range(len(items))])

    @torch.no_grad()
    def _encode(self, images: Dataset, label: str) -> Tensor:
        rank, world, device = _rank(), _world(), self.device
        self.clip.to(device)
        share = torch.utils.data.Subset(images, range(rank, len(images), world))
        batch_size = CPU_BATCH if device.type == "cpu" else GPU_BATCH
        loader = DataLoader(
            share,
            batch_size,
            num_workers=self.num_workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # the run's own random numbers stay as they are
        )
        precision = torch.autocast(device.type, self.autocast) if self.autocast else nullcontext()
        encode, chunks = self.encode or self.clip.encode_image, []
        with precision, tqdm(total=len(share), desc=label, unit="image", disable=rank != 0, leave=False) as bar:
            for batch in loader:
                # Always a full batch: kernels differ with its size, and features must not depend on an image's company.
                full = batch[torch.arange(batch_size) % len(batch)].to(device, non_blocking=True)
                chunks.append(encode(full)[: len(batch)].float().cpu())
                bar.update(len(batch))
        mine = torch.cat(chunks) if chunks else torch.empty(0)
        return mine if world == 1 else _interleave(mine, len(images))


class FixedViews(Dataset):
    """One fixed view (3, H, W) of each image."""

    def __init__(self, items: Sequence[Item], preprocess: Preprocess | None, clip: FrozenCLIP, view: int | None):
        self.items, self.preprocess, self.view = items, preprocess, view
        make = test_transform if view is None else train_transform
        self.transform = make(clip.preprocess_cfg)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        item = self.items[index]
        image = open_image(item.path, self.preprocess)
        return reproducible(self.transform, image, "view", self.view, *Path(item.path).parts[-2:])


def _source(function: Preprocess) -> tuple[str, str]:
    """A function by name and by the content of its module: other constants there make other features."""
    content = Path(inspect.getsourcefile(function)).read_bytes()
    return function.__qualname__, hashlib.sha256(content).hexdigest()


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _same_everywhere(known: dict[int, Tensor]) -> dict[int, Tensor]:
    """What rank 0 found in the cache: another process may write between two ranks' look-ups."""
    if _world() == 1:
        return known
    box = [known]
    dist.broadcast_object_list(box)
    return box[0]


def _interleave(mine: Tensor, count: int) -> Tensor:
    """Put the shares of all ranks (rank r has images r, r + world, ...) back in order."""
    shares: list[Tensor | None] = [None] * _world()
    dist.all_gather_object(shares, mine)
    whole = torch.empty(count, max(share.shape[-1] for share in shares))
    for rank, share in enumerate(shares):
        if len(share):
            whole[rank :: len(shares)] = share
    return whole
