"""Image transforms: the paper's augmentation for training, the model's own preprocessing for testing."""

import hashlib
from collections.abc import Callable

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

CROP_SCALE = (0.08, 1.0)

Transform = Callable[[Image.Image], Tensor]


def test_transform(preprocess: PreprocessCfg) -> Transform:
    """The backbone's own deterministic preprocessing: PIL image to (3, H, W)."""
    return image_transform_v2(preprocess, is_train=False)


def train_transform(preprocess: PreprocessCfg) -> Transform:
    """Random resized crop, horizontal flip, normalization (CoOp, section 4.1); draws from torch's global generator."""
    crop = T.RandomResizedCrop(preprocess.size, CROP_SCALE, interpolation=InterpolationMode(preprocess.interpolation))
    normalize = T.Normalize(preprocess.mean, preprocess.std)
    return T.Compose([crop, T.RandomHorizontalFlip(), T.ToTensor(), normalize])


def reproducible(transform: Transform, image: Image.Image, *key: object) -> Tensor:
    """Apply a random transform with a generator that depends on `key` alone.

    So an image's augmentation is the same whatever the number of workers or ranks, and after a resume.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed seeds every GPU too, for good; without one it notes the whole stack, a millisecond an image.
        torch.default_generator.manual_seed(stable_seed(*key))
        return transform(image)


def stable_seed(*key: object) -> int:
    """A 63-bit seed from any values with a stable text form (Python's own hash differs from run to run)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
