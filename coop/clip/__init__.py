"""The frozen CLIP and its text tower; the only package that touches open_clip's models."""

#: Of the weights, as open_clip calls them.
PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")
