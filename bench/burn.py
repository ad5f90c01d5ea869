"""Runs a program, and then takes more CPU time, as if the program had: to see a gate fail.

python burn.py SHARE PROGRAM ARGUMENT...      SHARE: 0.6 for 60 % more than the program took
"""

from __future__ import annotations

import os
import subprocess
import sys
import time


def main(share: str, *argv: str) -> int:
    code = subprocess.run(argv).returncode
    used = os.times()
    until = time.process_time() + float(share) * (used.children_user + used.children_system)
    while time.process_time() < until:
        pass
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
