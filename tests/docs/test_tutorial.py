"""The tutorial, typed as it stands: two machines, each with a folder and a home of its own, over real sockets.

A block of `console` has lines like `studio$ command`, and below each what it prints, on either stream. Figures may be
others, and what depends on the network may be missing.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from tests.product.support import give_identity, wait_until

TEXT: Final = (Path(__file__).parent.parent.parent / "docs" / "start" / "tutorial.md").read_text("utf-8")
CODE: Final = "7k2m-xq4c-9dht"
ADDRESS: Final = "192.168.1.20:7420"
# Nothing is announced outside this machine while tests run, so that a share does not say it is.
ONLY_ON_A_NETWORK: Final = "On the same network the code is enough, without an address."
NUMBER: Final = r"\d+(?:\\\.\d+)?\\ "  # as re.escape writes it, with the space behind it
FIGURES: Final = {NUMBER + r"[kMG]?B/s": r"[\\d.]+ [kMG]?B/s", NUMBER + r"s\b": r"[\\d.]+ s"}
FIGURES_OF_STATUS: Final = {r"pid\\ \d+": r"pid \\d+", NUMBER + "MiB": r"[\\d.]+ MiB"}


@dataclass
class Step:
    machine: str
    command: str
    output: list[str] = field(default_factory=list)


def steps(text: str) -> list[Step]:
    found: list[Step] = []
    for block in re.findall(r"(?ms)^```console\n(.*?)^```$", text):
        for line in block.splitlines():
            if prompt := re.match(r"(\w+)\$ (.*)", line):
                found.append(Step(prompt[1], prompt[2]))
            else:
                found[-1].output.append(line)
    return found


class Machine:
    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        give_identity(folder / f"{name}-home")  # made beforehand: it takes a moment of the processor
        self.address = ""  # of the share, once it runs
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
        host = {"HEADRACE_CODE": CODE, "HEADRACE_BIND": "127.0.0.1", "HEADRACE_PORT": "0"}
        # On a busy machine even loopback may seem far, and QUIC be first.
        guest = {"HEADRACE_TRANSPORT": "tcp"}
        self._env = {
            **clean,
            **(host if name == "studio" else guest),
            "HEADRACE_HOME": str(folder / f"{name}-home"),
            "HEADRACE_NO_DISCOVERY": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self._last = 0
        self.serving: subprocess.Popen[bytes] | None = None

    def do(self, step: Step) -> None:
        wanted = expected(step.output, self.address)
        if step.command == "^C":
            assert self.serving
            self.serving.send_signal(signal.SIGINT)
            self.serving.wait(10)
            assert any(re.fullmatch(wanted[-1], line) for line in self.lines())
        elif step.command.startswith("headrace share"):
            with self.output.open("wb") as out:
                self.serving = subprocess.Popen(
                    ["bash", "-c", f"exec {step.command}"], cwd=self.folder, env=self._env, stdout=out, stderr=out
                )
            wait_until(lambda: len(self.lines()) >= len(wanted) or self.serving and self.serving.poll(), step.command)
            found = re.search(rf"{CODE}@(127\.0\.0\.1:\d+)", self.output.read_text())
            assert found, self.lines()
            self.address = found[1]
            assert not different(self.lines(), expected(step.output, self.address))
        else:
            command = step.command.replace(ADDRESS, self.address).replace("$?", str(self._last))
            problem = different(self.run(command), wanted)
            if command == "headrace status":  # a peer that just went may still be listed
                wait_until(lambda: not different(self.run(command), wanted), f"{command} as in the tutorial: {problem}")
            else:
                assert not problem, f"{command}: {problem}"

    def run(self, command: str) -> list[str]:
        ran = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=50,
            check=False,
        )
        self._last = ran.returncode
        return ran.stdout.splitlines()

    @property
    def output(self) -> Path:
        return self.folder.parent / "serving"

    def lines(self) -> list[str]:
        return self.output.read_text().splitlines()


def expected(output: list[str], address: str) -> list[str]:
    """Patterns for each line."""
    lines = [line.replace(ADDRESS, address).replace("7420", address.rpartition(":")[2]) for line in output]
    patterns = [re.escape(line) for line in lines if line != ONLY_ON_A_NETWORK]
    figures = FIGURES | FIGURES_OF_STATUS if patterns and "pid" in patterns[0] else FIGURES
    for figure, anything in figures.items():
        patterns = [re.sub(figure, anything, pattern) for pattern in patterns]
    return patterns


def different(lines: list[str], wanted: list[str]) -> str:
    """What is not as it should be. Standard output and standard error may come in another order than in the text."""
    left = list(lines)
    for pattern in wanted:
        found = next((line for line in left if re.fullmatch(pattern, line)), None)
        if found is None:
            return f"no line like {pattern!r} in {lines}"
        left.remove(found)
    return f"the tutorial does not have {left}" if left else ""


@pytest.mark.slow
@pytest.mark.timeout(180)  # fifteen commands, one after the other
def test_the_tutorial_works_as_it_stands(tmp_path: Path) -> None:
    typed = steps(TEXT)
    assert len(typed) > 10
    machines = {name: Machine(name, tmp_path) for name in ("studio", "laptop")}
    try:
        for step in typed:
            machines[step.machine].do(step)
            machines["laptop"].address = machines["studio"].address
    finally:
        if (serving := machines["studio"].serving) and serving.poll() is None:
            serving.kill()
            serving.wait()
