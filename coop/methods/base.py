"""The interface of a method."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP
from coop.clip.snapshot import Parts, Snapshot
from coop.clip.text import text_parts

#: Labelled features of the few shots: of "train" or "val" (never of the test set) the image_features (V, N, E) of
#: V fixed views, L2-normalised, and the labels (N). "val" has one view, and N = 0 where there are no validation images.
Labelled = Callable[[str], tuple[Tensor, Tensor]]


class Method(nn.Module):
    """A classifier over K classes that rests on a frozen CLIP.

    A subclass takes `clip` and `classnames` first and its own options as keyword arguments with types: the config's
    keys are exactly these arguments and are checked against them. Its parameters are what is trained; its state_dict
    is what is saved and loaded. The usual method computes class weights in `forward`; one that does not work by class
    weights overrides `logits`. What can't be trained step by step happens in `prepare` and `select`.

    Attributes:
        chosen: what `prepare` and `select` chose, by name; goes into results.json.

    Args:
        clip: the frozen CLIP. Not registered as a submodule: it is nobody's to train, move or save but its owner's.
        classnames: K class names as the data set gives them; underscores become spaces.
    """

    #: Whether the trained state has a meaning for other classes than those it was trained with.
    transfers_to_other_classes = True
    #: Names of parameters and buffers whose length is known with the training data alone; loading takes a file's.
    sized_by_training: tuple[str, ...] = ()
    #: Whether `encode_image` is its own, and trained: then every step brings images, never features.
    trains_image_encoder = False

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str]):
        super().__init__()
        self._clip = (clip,)
        self.classnames = [name.replace("_", " ") for name in classnames]
        self.chosen: dict[str, float] = {}
        self._kept: tuple[object, Snapshot, Tensor] | None = None

    @classmethod
    def check(cls, **options) -> None:
        """Refuse impossible options before anything is loaded. Raises CoopError."""

    @property
    def clip(self) -> FrozenCLIP:
        return self._clip[0]

    @property
    def trained_in_steps(self) -> bool:
        """Whether there is anything for an optimiser; otherwise a run has no epochs."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def trainable_params(self) -> int:
        """How many numbers are fitted to the training images; final after `select`."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def prepare(self, labelled: Labelled) -> None:
        """Called once before the first step, before a checkpoint is taken up: closed forms, caches.

        Features are on the CPU; what is made of them belongs where the method's parameters are.
        """

    def select(self, labelled: Labelled) -> None:
        """Called once after the last step: hyper-parameters chosen on the validation images."""

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args, **kwargs):
        for name in self.sized_by_training:
            if name in state_dict:
                tensor = getattr(self, name)
                shape = state_dict[name].shape[:1] + tensor.shape[1:]  # as many as the file has, each as wide as here
                tensor.data = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
        return super().load_state_dict(state_dict, *args, **kwargs)

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), preprocessed, to image_features (B, E), L2-normalised."""
        return self.clip.encode_image(images)

    def forward(self) -> Tensor:
        """text_features (K, E), L2-normalised."""
        raise NotImplementedError(f"{type(self).__name__} defines neither forward() nor logits()")

    def text_features(self) -> Tensor:
        """`forward()`; without gradients kept as long as nothing that it depends on is another.

        That is what is learned, the text tower, the device and the precision (autocast); `Snapshot` says what of it is
        seen when.
        """
        if torch.is_grad_enabled():
            return self()
        device = self.clip.device
        precision = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        if self._kept is None or self._kept[0] != precision or not self._kept[1].holds():
            self._kept = (precision, Snapshot(self._text_parts), self().detach())
        return self._kept[2]

    def _text_parts(self) -> Parts:
        roots, tensors = text_parts(self.clip.model)
        return [self, *roots], tensors

    def logits(self, image_features: Tensor) -> Tensor:
        """image_features (B, E), L2-normalised, to logits (B, K) (CoOp, equation 1)."""
        text_features = self.text_features()
        # Half precision has too few digits to rank classes by.
        with torch.autocast(image_features.device.type, enabled=False):
            return self.clip.logit_scale.exp() * image_features @ text_features.T.to(image_features.dtype)

    def loss(self, image_features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What training minimises on a batch: by default the cross-entropy.

        Args:
            image_features: (B, E), L2-normalised.
            labels: (B).

        Returns:
            The loss, and logits (B, K), from which the training accuracy is taken.
        """
        logits = self.logits(image_features)
        return F.cross_entropy(logits, labels), logits
