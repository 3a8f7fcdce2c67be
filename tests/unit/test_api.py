"""The names that `coop` offers, and what importing it costs."""

import subprocess
import sys

import pytest

import coop


def test_importing_coop_brings_nothing_heavy():
    code = "import sys, coop; heavy = {'torch', 'numpy', 'open_clip', 'omegaconf'} & set(sys.modules); assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_names_are_there():
    for name in coop.__all__:
        assert getattr(coop, name) is not None and name in dir(coop)
    with pytest.raises(AttributeError, match="module 'coop' has no attribute 'FrozenClip'"):
        coop.FrozenClip  # noqa: B018
