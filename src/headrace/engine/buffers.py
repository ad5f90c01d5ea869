"""Memory for bulk data."""

from __future__ import annotations

import mmap


def new_buffer(size: int) -> memoryview:
    """A page-aligned, zeroed buffer of `size` bytes, given back to the system as soon as nobody refers to it.

    Not a bytearray: once a few of 4 MiB were freed, the C library serves them from each thread's own heap and keeps
    them there, so that a host's memory grew with the number of threads it had ever had.
    """
    return memoryview(mmap.mmap(-1, size))
