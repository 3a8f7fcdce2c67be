"""How much memory a run takes at most, and how the C library gives it back."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
DEFAULT_TRIM_THRESHOLD, DEFAULT_MMAP_MAX = 128 * 1024, 65536
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones.

    By default it returns large blocks to the system at once, and every step pays for getting them again, page by page:
    a third of the time of the bundled image tower on a CPU. Elsewhere than with glibc, nothing happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """The same for a while: afterwards the C library returns memory as it does by default, and what is free now."""
    keep_freed_memory()
    try:
        yield
    finally:
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        if hasattr(libc, "malloc_trim"):
            libc.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
            libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD)
            libc.malloc_trim(0)


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
