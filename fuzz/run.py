"""Runs one target with inputs of a fuzzer's choice: `python -m fuzz.run TARGET [--seconds N]`.

With atheris (Linux) it is guided by coverage. Without, seeds are changed at random, which finds less; it says so.
A crash is written to `fuzz/crashes/TARGET-…` and ends the run with 1. When it is mended, move it to
`fuzz/corpus/TARGET`: the tests run what lies there.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import logging
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

CORPUS: Final = Path(__file__).parent / "corpus"
CRASHES: Final = Path(__file__).parent / "crashes"
LONGEST: Final = 8192  # bytes of an input
SLOWEST: Final = 10.0  # seconds for one; more is a hang


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz what reads a peer's bytes.")
    parser.add_argument("target", choices=sorted(path.name for path in CORPUS.iterdir()))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--blind", action="store_true", help="without atheris, even where it is")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # what takes more than that is a crash as well
    try:
        if options.blind:
            raise ImportError("not wanted")
        importlib.import_module("atheris")
    except ImportError as why:
        print(f"fuzz: no atheris ({why}); seeds are changed at random, without coverage", flush=True)
        return _blind(options.target, options.seconds, random.Random(options.seed))
    return _guided(options.target, options.seconds, options.seed)


def _guided(name: str, seconds: int, seed: int) -> int:
    """By libFuzzer, which ends the process itself. Findings beyond the seeds go to a folder of their own."""
    fuzzer = importlib.import_module("atheris")
    with fuzzer.instrument_imports(include=["headrace"]):
        targets = importlib.import_module("fuzz.targets")
    CRASHES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="headrace-corpus-") as found:
        arguments = [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-max_len={LONGEST}",
            f"-timeout={SLOWEST:.0f}",
            f"-seed={seed % 2**31}",
            "-rss_limit_mb=3000",
            "-print_final_stats=1",
            f"-artifact_prefix={CRASHES}/{name}-",
            found,
            str(CORPUS / name),
        ]
        fuzzer.Setup(arguments, targets.TARGETS[name], internal_libfuzzer=True)
        fuzzer.Fuzz()
    return 0


def _blind(name: str, seconds: int, rng: random.Random) -> int:
    from fuzz.targets import TARGETS

    target, seeds = TARGETS[name], [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    ends, count = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        data = changed(rng, rng.choice(seeds), rng.choice(seeds))
        count += 1
        began = time.monotonic()
        try:
            target(data)
            assert time.monotonic() - began < SLOWEST, "it hangs"
        except BaseException as why:  # noqa: BLE001  # whatever it is, it is a finding
            return _crash(name, data, why)
    print(f"fuzz: {name}: {count} executions, no crash")
    return 0


def _crash(name: str, data: bytes, why: BaseException) -> int:
    import traceback

    CRASHES.mkdir(exist_ok=True)
    file = CRASHES / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    file.write_bytes(data)
    traceback.print_exception(why)
    print(f"fuzz: {name}: a crash, see {file}")
    return 1


def changed(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """One input made of two: bytes turned, cut, doubled, put elsewhere, or numbers that mean trouble."""
    raw = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(raw) + 1)
        kind = rng.randrange(6)
        if kind == 0 and raw:
            raw[at % len(raw)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 2:
            del raw[at : at + rng.randrange(1, 17)]
        elif kind == 3:
            raw[at:at] = other[rng.randrange(len(other) + 1) :][: rng.randrange(1, 200)]
        elif kind == 4:
            number = rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1])
            width = rng.choice([1, 2, 4, 8])
            raw[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, "big")
        else:
            raw += raw[at : at + 64]
    return bytes(raw[:LONGEST])


if __name__ == "__main__":
    sys.exit(main())
