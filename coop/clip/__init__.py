"""The frozen CLIP and its text tower; the only package that touches open_clip's models."""
