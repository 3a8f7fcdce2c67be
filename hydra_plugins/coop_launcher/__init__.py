"""Hydra's plugins are found in the package `hydra_plugins` alone."""
