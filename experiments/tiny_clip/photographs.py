"""A few photographs that come with PyPI packages, and what other media make of them.

They show the tower what "a sketch of" or "a blurry photo of" does to its features, and how sure it is of what it sees.
They are too few to learn any class from, and none is from a data set that the model is judged on: 20 from foolbox
(of ImageNet, which the tower was trained on anyway) and 2 from scikit-learn.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from image_tower import MEAN, SIZE, STD, JointSpace, package_folder
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor, nn

BATCH = 8


def sample_photographs() -> list[Image.Image]:
    """Square photographs of 1.25 times the tower's size.

    Raises:
        CoopError: a package is missing.
    """
    folders = (package_folder("foolbox"), package_folder("sklearn") / "datasets")
    paths = [path for folder in folders for path in sorted(folder.rglob("*.jpg")) if "fashion" not in path.name]
    side = SIZE * 5 // 4
    return [ImageOps.fit(Image.open(path).convert("RGB"), (side, side), Image.Resampling.BICUBIC) for path in paths]


def views(photograph: Image.Image) -> list[Image.Image]:
    """The four corners and the centre."""
    room = photograph.width - SIZE
    corners = [(0, 0), (room, 0), (0, room), (room, room), (room // 2, room // 2)]
    return [photograph.crop((left, top, left + SIZE, top + SIZE)) for left, top in corners]


def pencil(image: Image.Image) -> Image.Image:
    """Dark lines on white: the grey image divided by its own blurred version."""
    gray = np.asarray(image.convert("L"), np.float32)
    blurred = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(5)), np.float32)
    lines = np.clip(255 * gray / np.maximum(blurred, 1), 0, 255).astype(np.uint8)
    return ImageOps.autocontrast(Image.fromarray(lines), cutoff=(2, 40)).convert("RGB")


def painted(image: Image.Image) -> Image.Image:
    """Broad strokes of one colour each."""
    return ImageEnhance.Color(image.filter(ImageFilter.ModeFilter(9))).enhance(1.3)


def cartoon(image: Image.Image) -> Image.Image:
    """Few flat, strong colours with dark outlines."""
    flat = ImageOps.posterize(image.filter(ImageFilter.MedianFilter(7)), 2)
    flat = ImageEnhance.Brightness(ImageEnhance.Color(flat).enhance(1.8)).enhance(1.3)
    edges = image.convert("L").filter(ImageFilter.GaussianBlur(1.5)).filter(ImageFilter.FIND_EDGES)
    outlines = edges.point(lambda value: 0 if value > 25 else 255).convert("RGB")
    return ImageChops.multiply(flat, outlines)


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """Reduced to a few pixels and enlarged again."""
    return image.resize((side, side), Image.Resampling.BOX)


def small(image: Image.Image) -> Image.Image:
    """The whole in the middle of its own blurred surroundings."""
    canvas = image.filter(ImageFilter.GaussianBlur(25))
    canvas.paste(image.resize((SIZE // 2, SIZE // 2), Image.Resampling.BICUBIC), (SIZE // 4, SIZE // 4))
    return canvas


def enlarged(image: Image.Image) -> Image.Image:
    quarter = SIZE // 4
    return image.crop((quarter, quarter, SIZE - quarter, SIZE - quarter)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


MEDIA: dict[str, Callable[[Image.Image], Image.Image]] = {
    "sketch": pencil,
    "painting": painted,
    "cartoon": cartoon,
    "gray": lambda image: image.convert("L").convert("RGB"),
    "dark": lambda image: ImageEnhance.Brightness(image).enhance(0.25),
    "bright": lambda image: ImageEnhance.Brightness(image).enhance(2.2),
    "blurry": lambda image: image.filter(ImageFilter.GaussianBlur(4)),
    "low resolution": lambda image: shrunk(image, 40).resize((SIZE, SIZE), Image.Resampling.BICUBIC),
    "pixelated": lambda image: shrunk(image, 28).resize((SIZE, SIZE), Image.Resampling.NEAREST),
    "small": small,
    "close-up": enlarged,
}


def as_input(images: list[Image.Image]) -> Tensor:
    """Images of the tower's size to (B, 3, H, W), normalised as the tower was trained."""
    pixels = torch.from_numpy(np.stack([np.asarray(image, np.float32) for image in images])) / 255
    return ((pixels - MEAN) / STD).permute(0, 3, 1, 2)  # stays channels_last in memory


@torch.inference_mode()
def tower_features(tower: nn.Module, images: list[Image.Image]) -> Tensor:
    """The tower's own features, (N, D), before projection."""
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    return torch.cat([tower.forward_head(tower.forward_features(as_input(b)), pre_logits=True) for b in batches])


def media_shifts(tower: nn.Module, space: JointSpace, photographs: list[Image.Image]) -> dict[str, Tensor]:
    """How each medium moves L2-normalised image features, (E,), on average over the photographs' views."""
    images = [view for photograph in photographs for view in views(photograph)]

    def features(change: Callable[[Image.Image], Image.Image]) -> Tensor:
        projected = tower_features(tower, [change(image) for image in images]) @ space.projection.T
        return F.normalize(projected, dim=-1).mean(dim=0)

    plain = features(lambda image: image)
    return {name: features(change) - plain for name, change in MEDIA.items()}
