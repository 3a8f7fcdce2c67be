"""Data: reading data sets, the few-shot protocol, images and their features."""

from coop.data.sampling import Item, Splits, few_shot

__all__ = ["Item", "Splits", "few_shot"]
