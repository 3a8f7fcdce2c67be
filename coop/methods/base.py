"""The interface of a method."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from torch import Tensor, nn

from coop.clip.backbone import FeatureKind, FrozenCLIP
from coop.clip.snapshot import Parts, Snapshot
from coop.clip.text.plain import text_parts
from coop.errors import CoopError
from coop.system.validation import NOT_NEGATIVE, POSITIVE, Rule, between, check_value

log = logging.getLogger("coop")

#: Labeled features of the few shots: of "train" or "val" (never of the test set) the image_features (V, N, E) of
#: V fixed views, of the method's `feature_kind`, and the labels (N). "val" has one view, and N = 0 where there are no
#: validation images, or where nothing may be chosen on them (`validation=none`).
Labeled = Callable[[str], tuple[Tensor, Tensor]]

# Types of options.
Count = Annotated[int, between(1)]
Positive = Annotated[float, POSITIVE]
#: Of a term of the loss.
Weight = Annotated[float, NOT_NEGATIVE]
#: From 0 to below 1.
Share = Annotated[float, Rule(lambda value: 0 <= value < 1, "must be from 0 to below 1")]


@dataclass(frozen=True)
class Batch:
    """What a training step sees."""

    labels: Tensor  # (B)
    image_features: Tensor  # (B, E), or of the method's `feature_kind`; from `encode_image` if it needs images
    images: Tensor | None = None  # (B, 3, H, W), preprocessed, if the method needs images
    teacher_features: Tensor | None = None  # (B, E), L2-normalized, the frozen CLIP's, if it needs a teacher
    epoch: int = 0  # from 0
    epochs: int = 1  # T
    step: int = 0  # how many steps of the optimizer came before, in all epochs
    steps: int = 1  # how many there are in all


class Method(nn.Module):
    """A classifier over K classes that rests on a frozen CLIP.

    A subclass takes `clip` and `classnames` first and its own options as keyword arguments with types: the config's
    keys are exactly these arguments. What is given is checked against the types, and the rules that `Annotated` adds
    to them, before `__init__` runs. Its parameters are what is trained; its state_dict is what is saved and loaded.
    The usual method computes class weights in `forward`; one that does not work by class weights overrides `logits`.
    What can't be trained step by step happens in `prepare` and `select`.

    What no method explains is the same for all: `template` and `templates` are hand-crafted prompts with `{}` where the
    class name goes, `checkpoint` recomputes activations in the backward pass, to save memory, `options` are CoOp's own.

    Args:
        clip: the frozen CLIP. Not registered as a submodule: it is nobody's to train, move or save but its owner's.
        classnames: K class names as the data set gives them; underscores become spaces.
    """

    #: Whether the trained state has a meaning for other classes than those it was trained with.
    transfers_to_other_classes = True
    #: Names in the state_dict of what `prepare` fits to the training images, and no optimizer trains.
    fitted: tuple[str, ...] = ()
    #: Names of parameters and buffers whose length is known with the training data alone; loading takes a file's.
    sized_by_training: tuple[str, ...] = ()
    #: Whether there is anything to learn from images; otherwise a data set needs none to train on.
    learns = True
    #: Whether `encode_image` is its own, and trained: then every step brings images, never features alone.
    needs_images = False
    #: Whether each step also brings the frozen CLIP's features of the same views.
    needs_teacher = False
    #: Whether hand-crafted prompts tell it of the classes; one that holds `HandCrafted` features need not say so.
    hand_crafted = False
    #: Whether it has a rule for every choice where there are no validation images; one that has `prepare` or `select`
    #: must say so, or is refused with `validation=none`.
    works_without_validation = False
    #: What of the frozen image tower the method works on (`FrozenCLIP.encode_image`).
    feature_kind: FeatureKind = "normalized"
    #: Whether `text_features` are (B, K, E), one set for each image.
    text_depends_on_image = False
    #: How many images `logits` is given at a time, at most, when nothing is trained; bounds the memory.
    images_at_once = 4096

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _checked(cls.__init__)
        if "loss" in cls.__dict__ and len(inspect.signature(cls.loss).parameters) == 3:
            cls.loss = _on_batches(cls.loss)

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str]):
        super().__init__()
        self._clip = (clip,)
        self.classnames = [name.replace("_", " ") for name in classnames]
        #: What `prepare` and `select` chose, by name; goes into results.json.
        self.chosen: dict[str, float] = {}
        #: Whether the classes are those that it was trained with; what is a class's own means nothing for others.
        self.same_classes = True
        self._kept: tuple[object, Snapshot, Tensor] | None = None

    @classmethod
    def check(cls, **options) -> None:
        """Refuse what the types of single options cannot say, before anything is loaded. Raises CoopError."""

    @classmethod
    def check_words(cls, tokenizer: SimpleTokenizer, **options) -> None:
        """The same of options that a backbone's tokenizer decides on, where it is CLIP's. Raises CoopError."""

    @property
    def clip(self) -> FrozenCLIP:
        return self._clip[0]

    @property
    def logit_scale(self) -> Tensor:
        """The log of what multiplies the similarities, a scalar: the frozen CLIP's."""
        return self.clip.logit_scale

    def merged_image_tower(self) -> nn.Module | None:
        """For export: a copy of the image tower with what was learned in its weights; None if it takes more."""
        return None

    @property
    def trained_in_steps(self) -> bool:
        """Whether there is anything for an optimizer; otherwise a run has no epochs."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def trainable_params(self) -> int:
        """How many numbers are fitted to the training images; final after `select`."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return sum(tensor.numel() for tensor in [*trained, *self.fitted_tensors()])

    def fitted_tensors(self) -> list[Tensor]:
        """What `fitted` names, without gradient; writing into these changes the method's own."""
        state = self.state_dict()
        return [state[name] for name in self.fitted]

    @classmethod
    def check_without_validation(cls, **options) -> None:
        """Refuse `validation=none` before anything is loaded, where these options need a choice. Raises CoopError."""
        overrides = cls.select is not Method.select or cls.prepare is not Method.prepare
        if overrides and not cls.works_without_validation:
            raise CoopError(
                f"validation=none: {cls.__name__} may choose on validation images (it has prepare() or select()) and "
                "does not say that it works without them; give the class works_without_validation = True"
            )

    def parameter_groups(self, optimizer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Parameter groups for torch's optimizers, given the config's node: by default one, of all that is trained."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def backward(self, loss: Tensor) -> None:
        """Gradients of a step; called with the loss, scaled where mixed precision scales it."""
        loss.backward()

    def on_epoch_end(self, epoch: int, epochs: int) -> None:
        """Called after the last step of an epoch (from 0) of T; what it keeps has to be in the state_dict."""

    def prepare(self, labeled: Labeled) -> None:
        """Called once before the first step, before a checkpoint is loaded: closed forms, caches.

        Features are on the CPU, the CLIP and the method on the device of the run, where what is made of them belongs.
        """

    def select(self, labeled: Labeled) -> None:
        """Called once after the last step: hyper-parameters chosen on the validation images."""

    def to_choose_on(self, labeled: Labeled, otherwise: str, *values: Any) -> tuple[Tensor, Tensor] | None:
        """Features (N, E) and labels (N) of the validation images, on the device; None and a warning if there are none.

        The warning says what holds otherwise, with a place such as %g for each value, read from the device only then.
        """
        (features,), labels = (x.to(self.clip.device) for x in labeled("val"))
        if len(labels):
            return features, labels
        log.warning(f"%s: no validation images, {otherwise}", type(self).__name__, *values)
        return None

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args, **kwargs):
        for name in self.sized_by_training:
            if name in state_dict:
                tensor = getattr(self, name)
                shape = state_dict[name].shape[:1] + tensor.shape[1:]  # as many as the file has, each as wide as here
                tensor.data = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
        return super().load_state_dict(state_dict, *args, **kwargs)

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), preprocessed, to image_features (B, E), or as `feature_kind` says."""
        return self.clip.encode_image(images, self.feature_kind)

    def forward(self) -> Tensor:
        """text_features (K, E), L2-normalized."""
        raise NotImplementedError(f"{type(self).__name__} defines neither forward() nor logits()")

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """text_features (K, E), L2-normalized: `forward()`; without gradients kept while nothing changes.

        That is what is learned, the text encoder, the device and the precision (autocast); `Snapshot` says what of it
        is seen when. Where `text_depends_on_image`, a method overrides this, and gives (B, K, E) for image_features
        (B, E).
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
        """image_features (B, E), L2-normalized, to logits (B, K) (CoOp, equation 1)."""
        text_features = self.text_features(image_features) if self.text_depends_on_image else self.text_features()
        return self.logits_of(image_features, text_features)

    def logits_of(self, image_features: Tensor, text_features: Tensor, scale: float | None = None) -> Tensor:
        """Logits (B, K) of image_features (B, E) and text_features (K, E) or (B, K, E), both L2-normalized.

        The scale of their products is the CLIP's own if not given.
        """
        # Half precision has too few digits to rank classes by.
        with torch.autocast(image_features.device.type, enabled=False):
            text_features = text_features.to(image_features.dtype)
            factor = self.logit_scale.exp() if scale is None else scale
            if text_features.ndim == 3:
                return factor * torch.einsum("be,bke->bk", image_features, text_features)
            return factor * image_features @ text_features.T

    def loss(self, batch: Batch, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What training minimizes: by default the cross-entropy.

        Args:
            batch: of a step.
            labels: only from a method of before version 0.2, whose `loss(image_features, labels)` calls this one.

        Returns:
            The loss, and logits (B, K), from which the training accuracy is taken.
        """
        batch = batch if labels is None else Batch(labels, batch)
        logits = self.logits(batch.image_features)
        return F.cross_entropy(logits, batch.labels), logits


def _checked(init: Callable) -> Callable:
    """An `__init__` whose options are checked first, with those that it passes on to its parent's."""

    @wraps(init)
    def checked(self, clip, classnames, *args, **options):
        cls = type(self)
        if cls.__init__ is checked:  # and not a parent's, which is given what its subclass made of the options
            given = dict(zip(list(inspect.signature(init).parameters)[3:], args, strict=False)) | options
            inits = [parent.__init__ for parent in reversed(cls.__mro__) if issubclass(parent, Method)]
            types = {key: kind for each in inits for key, kind in get_type_hints(each, include_extras=True).items()}
            for key in given.keys() & types.keys():
                check_value(f"method.{key}", _as_in_a_config(given[key]), types[key])
            cls.check(**given)
        init(self, clip, classnames, *args, **options)

    return checked


def _as_in_a_config(value: Any) -> Any:
    """From Python, options are also tuples and numbers of NumPy."""
    return list(value) if isinstance(value, tuple) else value.item() if isinstance(value, np.generic) else value


def _on_batches(loss: Callable) -> Callable:
    """A method of before version 0.2, `loss(self, image_features, labels)`, called with a batch."""

    @wraps(loss)
    def on_batch(self, batch, labels=None):
        if labels is None:
            return loss(self, batch.image_features, batch.labels)
        return loss(self, batch, labels)

    return on_batch
