"""What becomes of memory that a step gives back: kept for the next step, as CUDA's allocator keeps it."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Tells the C library to keep what is freed, for this process; whether it was told.

    A training step on a CPU frees its activations and asks for as many bytes again a moment later. By default glibc gives
    them back to the system in between whenever the end of its heap is free, and takes large ones from the system anyway;
    each page is then faulted in and zeroed again, which costs a small net up to half of its step, in some steps and not in
    others. Told to neither trim nor map, it does not. The price: the process stays as large as it ever was.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "gnu_get_libc_version"):
        return False  # another C library
    return bool(library.mallopt(M_TRIM_THRESHOLD, -1)) and bool(library.mallopt(M_MMAP_MAX, 0))
