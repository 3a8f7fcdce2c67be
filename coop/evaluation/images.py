"""What a trained method sees in images: files, PIL images or arrays."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from coop.data.images import open_image, to_rgb
from coop.data.readers.listing import printable
from coop.data.transforms import test_transform
from coop.errors import CoopError
from coop.evaluation.metrics import check_probabilities
from coop.methods import Method
from coop.system.progress import progress

BATCH_SIZE = 32

#: The path of a file, a PIL image, or an array of uint8, (H, W, 3) or (H, W).
AnyImage = str | os.PathLike | Image.Image | np.ndarray


def predict_images(
    method: Method, images: Sequence[AnyImage], top: int, autocast: torch.dtype | None = None
) -> list[dict[str, Any]]:
    """The most probable classes of each image, as `coop.evaluation.finished.Run.predict` returns them.

    Args:
        method: trained.
        images: any mixture of paths, PIL images and arrays; one without a path is "image 0", "image 1".
        top: how many classes, at most all.
        autocast: the run's dtype of mixed precision (`coop.config.autocast_dtype`).

    Raises:
        CoopError: `top` is no number of classes, or the method's probabilities are NaN.
    """
    if top < 1:
        raise CoopError(f"top={top}: must be at least 1")
    predictions = [{"path": name_of(image, number)} for number, image in enumerate(images)]
    for prediction, seen in zip(predictions, classified(method, images, autocast), strict=True):
        if isinstance(seen, CoopError):
            prediction["error"] = str(seen)
            continue
        best = zip(*(column.tolist() for column in seen.topk(min(top, len(seen)))), strict=True)
        prediction["classes"] = [{"classname": method.classnames[k], "probability": value} for value, k in best]
    return predictions


def classified(
    method: Method, images: Sequence[AnyImage], autocast: torch.dtype | None = None
) -> Iterator[Tensor | CoopError]:
    """The probabilities (K) of each image, on the CPU, or why it cannot be read; see `predict_images`."""
    transform = test_transform(method.clip.preprocess_cfg)
    starts = range(0, len(images), BATCH_SIZE)
    for start in progress(starts, desc="images", unit="batch", hidden=len(starts) <= 1, leave=False):
        batch = [opened(images[n], name_of(images[n], n)) for n in range(start, min(start + BATCH_SIZE, len(images)))]
        prepared = [transform(image) for image in batch if not isinstance(image, CoopError)]
        rows = iter(_probabilities(method, torch.stack(prepared), autocast) if prepared else [])
        yield from (image if isinstance(image, CoopError) else next(rows) for image in batch)


@torch.no_grad()
def _probabilities(method: Method, images: Tensor, autocast: torch.dtype | None) -> Tensor:
    """Probabilities (B, K) of preprocessed images (B, 3, H, W), on the CPU."""
    device = method.clip.device
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        parts = method.encode_image(images.to(device)).float().split(method.images_at_once)
        probabilities = torch.cat([method.logits(part).float().softmax(dim=1) for part in parts]).cpu()
    check_probabilities(probabilities)
    return probabilities


def name_of(image: AnyImage, number: int) -> str:
    """What an image is called in predictions and messages."""
    path = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", "")
    return printable(os.fspath(path)) if path else f"image {number}"


def opened(image: AnyImage, name: str) -> Image.Image | CoopError:
    """An image as 8-bit RGB, or why it is none."""
    try:
        if isinstance(image, str | os.PathLike):
            return open_image(os.fspath(image))
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            return to_rgb(image)
    except CoopError as error:
        return error
    except Exception as error:  # whatever PIL raises for what is damaged, or for an array of another shape
        return CoopError(f"{name}: not a readable image ({type(error).__name__}: {error})")
    given = f"an array of {image.dtype} {image.shape}" if hasattr(image, "dtype") else f"a {type(image).__name__}"
    return CoopError(f"{name}: {given}; expected a path, a PIL image, or an array of uint8, (H, W, 3) or (H, W)")
