"""The bundled mini data set: 25 classes of Caltech101, and four synthetic shifts of its test photographs.

The shifts are stated, deterministic transforms of the same photographs, computed when an image is opened. They are
synthetic: they stand in for real domain shifts (ImageNet-Sketch and the like) only so that domain generalization can
be tried without any download.
"""

import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from coop.data.readers.split_file import load_rows, splits_from_rows
from coop.data.sampling import Splits

MINI = Path(__file__).parents[2] / "assets" / "mini"

BLUR_RADIUS = 1 / 50  # of the short side
NOISE_STD = 60.0  # of 255
SKETCH_RADIUS = 1 / 50  # of the short side
SKETCH_CONTRAST = 4


Shift = Literal["none", "grayscale", "blur", "noise", "sketch"]


def read_mini(data_root: str | None, *, shift: Shift = "none") -> Splits:
    """Read the mini data set that comes with the package; `data_root` is not needed.

    Args:
        data_root: not used.
        shift: a synthetic change of the test photographs; a shifted set has no training and validation images.

    Returns:
        16 training, 4 validation and 20 test photographs of each of 25 classes, within Caltech101's published split.
    """
    source = MINI / "split_mini.json"
    splits = splits_from_rows(load_rows(source), MINI / "images", source, "published")
    if shift == "none":
        return splits
    return Splits([], [], splits.test, splits.classnames, splits.origin, preprocess=SHIFTS[shift])


def grayscale(image: Image.Image) -> Image.Image:
    """Synthetic shift: brightness only (ITU-R 601 luma)."""
    return image.convert("L").convert("RGB")


def blur(image: Image.Image) -> Image.Image:
    """Synthetic shift: Gaussian blur, radius in proportion to the short side."""
    return image.filter(ImageFilter.GaussianBlur(min(image.size) * BLUR_RADIUS))


def noise(image: Image.Image) -> Image.Image:
    """Synthetic shift: independent Gaussian noise on every pixel and channel, drawn from the image's own content."""
    pixels = np.asarray(image)
    # RandomState's stream is frozen by numpy's policy, so the same image gets the same noise in every version.
    generator = np.random.RandomState(zlib.crc32(pixels.tobytes()))
    noisy = pixels + generator.normal(0.0, NOISE_STD, pixels.shape)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def sketch(image: Image.Image) -> Image.Image:
    """Synthetic shift: a line drawing; a pixel is dark where it is darker than its surroundings."""
    gray = image.convert("L")
    around = gray.filter(ImageFilter.GaussianBlur(min(image.size) * SKETCH_RADIUS))
    ratio = (np.asarray(gray, dtype=np.float64) + 1) / (np.asarray(around, dtype=np.float64) + 1)
    lines = 255 * ratio.clip(0, 1) ** SKETCH_CONTRAST
    return Image.fromarray(lines.round().astype(np.uint8)).convert("RGB")


SHIFTS = {"grayscale": grayscale, "blur": blur, "noise": noise, "sketch": sketch}
