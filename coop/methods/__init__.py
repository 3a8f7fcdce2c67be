"""Methods: what is trained on top of the frozen CLIP. One file each; a config names the class by `_target_`."""

from coop.methods.base import Method

__all__ = ["Method"]
