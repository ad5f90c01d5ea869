"""Faults that a real headrace process is started with: Python that runs in it before anything else."""

from __future__ import annotations


def stall_timeout(seconds: float) -> str:
    """Who hears nothing in the middle of something gives up after so long, not after 30 s."""
    return f"""
import headrace.client.greeting, headrace.host.session, headrace.transport.tcp, headrace.transport.quic.stream
for module in (headrace.client.greeting, headrace.host.session, headrace.transport.tcp, headrace.transport.quic.stream):
    module.STALL_TIMEOUT = {seconds}
"""


def failing_writes(after: int) -> str:
    """The disk takes so many bytes of files, and then says EIO."""
    return f"""
import errno, os
from headrace.storage.posix import PosixIO
def write(fd, data, offset, honest=PosixIO.write, left=[{after}]):
    left[0] -= len(data)
    if left[0] < 0:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    honest(fd, data, offset)
PosixIO.write = staticmethod(write)
"""


def failing_reads(offset: int, bad: str) -> str:
    """The file of that name cannot be read from `offset` on: EIO."""
    return f"""
import errno, os
from headrace.storage.posix import PosixIO
def read_into(fd, buffer, offset, honest=PosixIO.read_into):
    if offset + len(buffer) > {offset} and os.path.basename(os.readlink(f"/proc/self/fd/{{fd}}")) == {bad!r}:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return honest(fd, buffer, offset)
PosixIO.read_into = staticmethod(read_into)
"""


def few_descriptors(most: int) -> str:
    """So many files and sockets may be open at once."""
    return f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))
"""


# Ten years back after the first few looks; every further look sees it go back and forth by an hour.
CLOCK_SET_BACK = """
import itertools, time
looks = itertools.count()
def back():
    number = next(looks)
    return 0 if number < 3 else 3e8 + 3600 * (number % 2)
seconds, nanoseconds = time.time, time.time_ns
time.time = lambda: seconds() - back()
time.time_ns = lambda: nanoseconds() - int(back()) * 10**9
"""
