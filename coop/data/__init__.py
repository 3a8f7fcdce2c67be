"""Data: reading data sets, the few-shot protocol, images and their features."""

from coop.data.fewshot import Item, Splits, few_shot

__all__ = ["Item", "Splits", "few_shot"]
