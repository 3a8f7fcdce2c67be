"""How much memory a run takes at most, and how the C library gives it back."""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Of glibc's malloc.h, with what each is by default.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
DEFAULTS = {M_TRIM_THRESHOLD: 128 * 1024, M_MMAP_MAX: 65536}
KEEPING = {M_TRIM_THRESHOLD: 2**31 - 1, M_MMAP_MAX: 0}


def keep_freed_memory(keep: bool = True) -> None:
    """Let glibc keep the memory of freed tensors for the next ones, or return it to the system as it does by default.

    By default it returns large blocks at once, and every step pays for getting them again, page by page: a third of
    the time of the bundled image tower on a CPU. Elsewhere than with glibc, nothing happens.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "malloc_trim"):
        return
    for parameter, value in (KEEPING if keep else DEFAULTS).items():
        libc.mallopt(parameter, value)
    if not keep:
        libc.malloc_trim(0)  # what is free now


def start_peak(device: "torch.device") -> None:
    """Begin to measure: what runs before this one took in the same process does not count."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # elsewhere than on Linux it stays the peak of the whole process
            Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: "torch.device") -> float | None:
    """The most memory since `start_peak`, in megabytes (10^6 bytes): of a GPU its tensors, else the whole process.

    None where the system does not say (Windows).
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
