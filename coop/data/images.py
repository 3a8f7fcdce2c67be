"""Opening one image file: whatever it holds becomes 8-bit RGB, or one message says which file can't be used."""

import os
import stat
from collections.abc import Callable

import numpy as np
from PIL import Image

from coop.data.readers.listing import printable
from coop.errors import CoopError

Preprocess = Callable[[Image.Image], Image.Image]

MAX_16_BIT = 65535


def open_image(path: str, preprocess: Preprocess | None = None) -> Image.Image:
    """Open an image file as 8-bit RGB.

    CMYK, palette, grayscale and transparent images are converted (transparency is dropped, as in the original code);
    16-bit grayscale is scaled to 8 bits, where PIL alone would clip it to white. An EXIF orientation is not applied:
    the original code does not turn images either, and figures have to stay comparable with it.

    Args:
        path: the image file.
        preprocess: a function applied to the RGB image (`Splits.preprocess`: the bundled shifted sets).

    Returns:
        The decoded image, mode RGB.

    Raises:
        CoopError: the file is missing, unreadable, not an image, truncated, or has pixels without a known range.
    """
    shown = printable(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would wait for ever
            raise CoopError("not a readable image: a folder, a pipe or a device, not a file. Take it out.")
        with Image.open(path) as image:
            image.load()
            rgb = to_rgb(image)
    except CoopError as error:
        raise CoopError(f"{shown}: {error}") from None
    except FileNotFoundError:
        what = "is a link to a file that does not exist" if os.path.islink(path) else "does not exist"
        raise CoopError(
            f"{shown}: the image file {what}. Put it back, or take it out of the data set's list."
        ) from None
    except PermissionError:
        raise CoopError(f"{shown}: no permission to read this image file. Fix it with: chmod u+r '{shown}'") from None
    # A damaged file makes PIL's decoders raise nearly anything: OSError, SyntaxError, ValueError, zlib.error, ...
    except Exception as error:
        raise CoopError(
            f"{shown}: not a readable image ({type(error).__name__}: {error}). "
            "The file is truncated, damaged or not an image: copy or download it again, or take it out of the data set."
        ) from error
    return preprocess(rgb) if preprocess else rgb


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as 8-bit RGB. Raises CoopError for pixels without a known range."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_high_bit_depth(image).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # PIL warns about the direct way; the colors are the same
    return image.convert("RGB")


def _from_high_bit_depth(image: Image.Image) -> Image.Image:
    """Scale 16-bit grayscale, full range 0 to 65535, to 8 bits."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > MAX_16_BIT:
        raise CoopError(f"pixels of mode {image.mode} (32 bits) have no known range. Save the image with 8 or 16 bits.")
    return Image.fromarray((values.astype(np.float64) * (255 / MAX_16_BIT)).round().astype(np.uint8))
