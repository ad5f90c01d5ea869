"""kill -9 at a random moment: what the journal claims is true, and the next run finishes the file."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage.chunks import chunk_count, chunk_range, hash_bytes
from headrace.storage.partial import Partial, part_names

SIZE = 24 * CHUNK_SIZE + 4321
ROUNDS = 12
BLOCK = 64 * 1024

WRITER = """
import os, sys, threading
from tests.storage.test_kill import content, missing, open_partial
partial = open_partial(os.open(sys.argv[1], os.O_RDONLY))
print("open", flush=True)
work = [missing(partial)[n::2] for n in range(2)]
threads = [threading.Thread(target=lambda part=part: [content(partial, index) for index in part]) for part in work]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def open_partial(folder: int) -> Partial:
    return Partial.open(folder, b"a", size=SIZE, version=b"v" * 16, mtime_ns=1, sparse=False)


def missing(partial: Partial) -> list[int]:
    return [index for index in range(chunk_count(SIZE)) if index not in partial.verified]


def chunk(index: int) -> bytes:
    return random.Random(index).randbytes(BLOCK) * (CHUNK_SIZE // BLOCK)


def content(partial: Partial, index: int) -> None:
    """Writes and commits one chunk, in pieces as they come from the network."""
    offset, length = chunk_range(SIZE, index)
    piece = memoryview(chunk(index))[:length]
    for position in range(0, length, BLOCK):
        partial.write(offset + position, piece[position : position + BLOCK])
        time.sleep(0.0002)  # so that there are moments to be killed at
    partial.commit(index, hash_bytes(piece))


@pytest.mark.slow
def test_verified_chunks_are_right_after_a_kill(tmp_path: Path) -> None:
    expected = b"".join(chunk(index)[: chunk_range(SIZE, index)[1]] for index in range(chunk_count(SIZE)))
    folder = os.open(tmp_path, os.O_RDONLY)
    moments = random.Random()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    }
    seen = []
    for _ in range(ROUNDS):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, env=environment)
        assert writer.stdout
        assert select.select([writer.stdout], [], [], 30)[0] and writer.stdout.readline() == b"open\n"
        time.sleep(moments.uniform(0.0, 0.06))
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
        writer.stdout.close()
        partial = open_partial(folder)
        on_disk = (tmp_path / os.fsdecode(part_names(b"a")[0])).read_bytes()
        for index in partial.verified:
            offset, length = chunk_range(SIZE, index)
            assert on_disk[offset : offset + length] == expected[offset : offset + length], index
        seen.append(len(partial.verified))
        partial.close()
    assert seen == sorted(seen) and seen[-1] > 0  # nothing that was verified is ever lost
    partial = open_partial(folder)
    for index in missing(partial):
        content(partial, index)
    partial.finish(mode=0o644, mtime_ns=1, replace=False)
    assert (tmp_path / "a").read_bytes() == expected and os.listdir(tmp_path) == ["a"]
    os.close(folder)
