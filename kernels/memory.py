# SPDX-License-Identifier: Apache-2.0
"""The C library's allocator, told to keep what it is given back."""

import ctypes
import platform

_TRIM_THRESHOLD = -1  # malloc.h
_MMAP_THRESHOLD = -3


def keep_freed_memory(limit: int = 1 << 30) -> bool:
    """Keep freed blocks of up to ``limit`` bytes in the process; tell whether that is possible.

    By default glibc hands blocks above 32 MiB back to the system at once, and torch, which has no
    pool of its own on the CPU, pays for fresh zeroed pages at every operation: half the time of a
    batch whose activations are that large. The whole process is affected, for good, and its
    resident size stays at its peak: for long loops over a network, not for libraries to call on
    import.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    done = [library.mallopt(_MMAP_THRESHOLD, limit), library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)]
    return all(done)
