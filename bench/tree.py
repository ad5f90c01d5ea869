"""Many small files: headrace beside scp and rsync. `python -m bench.tree --help`."""

from __future__ import annotations

import argparse
import shutil
import sys
import sysconfig
from pathlib import Path

from bench import session
from headrace.bench import report
from headrace.bench.measure import Result
from headrace.bench.workspace import parse_size, random_tree, tree_size, workspace

BLOCK = 4096  # bytes; what a file of one byte takes
CASES = [name for name in session.CASES if name != "sendfile"]  # that one copies one file


def main() -> int:
    options = _options()
    return session.exit_code(lambda: run(options))


def _options() -> argparse.Namespace:
    parser = session.parser("Copies a tree of small files with each program in turn.", rounds=3, cases=CASES)
    parser.add_argument("--files", type=session.positive, default=20_000, help="how many (default %(default)s)")
    parser.add_argument("--size", type=parse_size, default=10 << 10, help="of each: 10k (default 10k)")
    parser.add_argument("--again", action="store_true", help="to where each has copied it already: nothing changed")
    parser.add_argument("--site-packages", action="store_true", help="this environment's site-packages instead")
    return parser.parse_args()


def run(options: argparse.Namespace) -> list[Result]:
    """options: files, size, again, site_packages, only, rounds, folder, json, as the command line gives them."""
    packages = Path(sysconfig.get_path("purelib"))
    files, size = tree_size(packages) if options.site_packages else (options.files, options.files * options.size)
    copies = len(options.only) + 1 if options.again else 2
    with workspace((copies + 1) * (size + files * BLOCK), options.folder) as folder:
        source = folder / "source" / "tree"
        report.tell(f"writing {files:,} files to {folder}")
        if options.site_packages:
            shutil.copytree(packages, source)  # follows symlinks, as scp does: else the copies would rightly differ
        else:
            random_tree(source, options.files, options.size)
        files, size = tree_size(source)
        what = "site-packages" if options.site_packages else "random bytes"
        return session.measure(
            "tree",
            source,
            folder,
            only=options.only,
            amount=files,
            unit=report.FILES,
            rounds=options.rounds,
            title=f"{files:,} files, {size / 1e6:,.0f} MB, {what}, in {folder.parent}{', again' * options.again}",
            again=options.again,
            json=options.json,
        )


if __name__ == "__main__":
    sys.exit(main())
