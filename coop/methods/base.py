"""The interface of a method."""

from collections.abc import Sequence

from torch import Tensor, nn

from coop.clip.backbone import FrozenCLIP


class Method(nn.Module):
    """A classifier over K classes that rests on a frozen CLIP.

    A subclass takes `clip` and `classnames` first and its own options as keyword arguments with types: the config's
    keys are exactly these arguments and are checked against them. Its parameters are what is trained. The usual
    method computes class weights in `forward`; one that does not work by class weights overrides `logits`.

    Args:
        clip: the frozen CLIP. Not registered as a submodule: it is nobody's to train, move or save but its owner's.
        classnames: K class names as the data set gives them; underscores become spaces.
    """

    #: Whether the trained state has a meaning for other classes than those it was trained with.
    transfers_to_other_classes = True

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str]):
        super().__init__()
        self._clip = (clip,)
        self.classnames = [name.replace("_", " ") for name in classnames]
        self._kept: tuple[object, Tensor] | None = None

    @classmethod
    def check(cls, **options) -> None:
        """Refuse impossible options before anything is loaded. Raises CoopError."""

    @property
    def clip(self) -> FrozenCLIP:
        return self._clip[0]

    @property
    def trainable_params(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def forward(self) -> Tensor:
        """text_features (K, E), L2-normalised."""
        raise NotImplementedError(f"{type(self).__name__} defines neither forward() nor logits()")

    def text_features(self) -> Tensor:
        """`forward()`; in evaluation computed once and kept until a parameter changes."""
        if self.training:
            return self()
        state = tuple((parameter.data_ptr(), parameter._version) for parameter in self.parameters())
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, self().detach())
        return self._kept[1]

    def logits(self, image_features: Tensor) -> Tensor:
        """image_features (B, E), L2-normalised, to logits (B, K) (CoOp, equation 1)."""
        return self.clip.logit_scale.exp() * image_features @ self.text_features().T.to(image_features.dtype)
