"""One large file of random bytes: headrace beside scp and rsync, and the limits. `python -m bench.bulk --help`."""

from __future__ import annotations

import argparse
import sys

from bench import session
from headrace.bench import report
from headrace.bench.measure import Result
from headrace.bench.workspace import GIB, MIB, parse_size, random_file, workspace


def main() -> int:
    options = _options()
    return session.exit_code(lambda: run(options))


def _options() -> argparse.Namespace:
    parser = session.parser("Copies one large file with each program in turn.", rounds=5, cases=list(session.CASES))
    parser.add_argument("--size", type=parse_size, default=GIB, help="of the file: 256m, 1g (default 1g)")
    return parser.parse_args()


def run(options: argparse.Namespace) -> list[Result]:
    """options: size, only, rounds, folder, json, as the command line gives them."""
    with workspace(3 * options.size, options.folder) as folder:
        source = folder / "source" / "large.bin"
        source.parent.mkdir()
        report.tell(f"writing {options.size / MIB:,.0f} MiB of random bytes to {folder}")
        random_file(source, options.size)
        return session.measure(
            "bulk",
            source,
            folder,
            only=options.only,
            amount=options.size,
            unit=report.MEGABYTES,
            rounds=options.rounds,
            title=f"One file of {options.size / MIB:,.0f} MiB, random bytes, in {folder.parent}",
            json=options.json,
        )


if __name__ == "__main__":
    sys.exit(main())
