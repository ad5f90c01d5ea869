"""What is installed when somebody installs headrace: the wheel, in an environment that has nothing else.

The locked requirements come from uv's cache, where scripts/setup left them, or else from where pip would get them.
Where neither has them, nothing can be installed, and the tests say so.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path
from typing import Final

import pytest

from headrace._version import __version__
from headrace.cli.app import COMMANDS

from .support import CODE, make_file, noise, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # the first one builds and installs

ROOT: Final = Path(__file__).parent.parent.parent
SECONDS: Final = 50  # for any one step; the slowest takes three


def run(
    *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """As somebody would who has neither this checkout nor its settings."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HEADRACE_", "PYTHON", "VIRTUAL_"))}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, "HEADRACE_NO_DISCOVERY": "1", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@dataclass(frozen=True)
class Package:
    """prefix: a fresh environment with the wheel and the locked requirements. sdist, wheel: what was built."""

    sdist: Path
    wheel: Path
    prefix: Path

    def headrace(self, *arguments: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
        env = {"HEADRACE_HOME": str(home), "HEADRACE_CODE": CODE}
        return run(self.prefix / "bin" / "headrace", *arguments, env=env)

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        return run(self.prefix / "bin" / "python", "-c", code, cwd=self.prefix)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("package")
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    # The wheel comes from the archive: what is missing there is missing for everybody who packages headrace.
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")

    prefix = folder / "environment"
    uv = run(ROOT / "scripts" / "_uv").stdout.strip()
    made = run(uv, "venv", "--quiet", "--no-project", "--python", sys.executable, prefix)
    assert made.returncode == 0, made.stderr
    install = [uv, "pip", "install", "--quiet", "--python", str(prefix / "bin" / "python"), "--no-deps"]
    locked = [*install, "--require-hashes", "-r", str(ROOT / "requirements" / "runtime.txt")]
    if run(*locked, "--offline").returncode != 0:
        fetched = run(*locked)
        if fetched.returncode != 0:
            pytest.skip(f"the locked requirements are not to be had here: {fetched.stderr.strip()[-500:]}")
    installed = run(*install, "--offline", wheel)
    assert installed.returncode == 0, installed.stderr
    return Package(sdist, wheel, prefix)


def test_it_does_the_main_job_with_nothing_but_what_it_asks_for(package: Package, tmp_path: Path) -> None:
    make_file(tmp_path / "share" / "a.mov", noise(5_000_000))
    make_file(tmp_path / "share" / "below" / "notes.txt", b"notes")
    said = package.headrace("--version", home=tmp_path / "home")
    assert said.stdout == f"headrace {__version__}\n"

    unit_environment = {"HEADRACE_CODE": CODE, "HEADRACE_PORT": "0", "HEADRACE_BIND": "127.0.0.1"}
    with share_by_unit(package, tmp_path / "share", tmp_path, unit_environment) as share:
        told = wait_until(lambda: re.search(r"@(127\.0\.0\.1:\d+)", (tmp_path / "out").read_text()), "its address")
        assert told
        target = told[1]
        home = tmp_path / "client"
        listed = package.headrace("ls", "-R", target, home=home)
        assert listed.stdout.split() == ["a.mov", "below/", "below/notes.txt"], listed.stderr
        got = package.headrace("get", target, tmp_path / "dest", home=home)
        assert got.returncode == 0, got.stderr
        share.send_signal(signal.SIGTERM)
        ended = share.wait(10)
    assert (tmp_path / "dest" / "a.mov").read_bytes() == (tmp_path / "share" / "a.mov").read_bytes()
    assert (tmp_path / "dest" / "below" / "notes.txt").read_bytes() == b"notes"
    unit = unit_of(package)
    assert str(ended) in unit["SuccessExitStatus"].split()  # stopping it is no failure
    assert unit["StandardOutput"] == "null"  # what stands there holds the code
    assert CODE in (tmp_path / "out").read_text()
    log = (tmp_path / "log").read_text()
    assert "connected" in log and CODE not in log  # and that goes to the journal


def unit_of(package: Package) -> dict[str, str]:
    text = (package.prefix / "share" / "systemd" / "user" / "headrace@.service").read_text()
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def share_by_unit(package: Package, folder: Path, tmp_path: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """What systemd would start, with this environment's headrace first on the path."""
    command = unit_of(package)["ExecStart"].replace("%f", str(folder)).split()
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HEADRACE_", "PYTHON", "VIRTUAL_"))}
    clean |= {"PATH": f"{package.prefix / 'bin'}:{os.environ['PATH']}", "HEADRACE_HOME": str(tmp_path / "host")}
    with (tmp_path / "out").open("wb") as out, (tmp_path / "log").open("wb") as log:
        return subprocess.Popen(
            command,
            env={**clean, "HEADRACE_NO_DISCOVERY": "1", **env},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
        )


def test_no_module_needs_more_than_the_wheel_asks_for(package: Package) -> None:
    """But for those that are what an extra is for."""
    found = package.python(
        "import importlib, pkgutil, headrace\n"
        "for module in pkgutil.walk_packages(headrace.__path__, 'headrace.'):\n"
        "    if module.name == 'headrace.__main__': continue\n"
        "    try: importlib.import_module(module.name)\n"
        "    except ModuleNotFoundError as why: print(module.name, why.name)\n"
        "print(headrace.__file__)"
    )
    assert found.returncode == 0, found.stderr
    *missing, where = found.stdout.splitlines()
    assert missing == ["headrace.bench.plot matplotlib", "headrace.fs fsspec"]
    assert Path(where).is_relative_to(package.prefix)


def test_what_lies_beside_the_code(package: Package) -> None:
    share = package.prefix / "share"
    manual = {path.name for path in (share / "man" / "man1").iterdir()}
    assert manual == {"headrace.1", *(f"headrace-{name}.1" for name in COMMANDS)}
    assert f"headrace {__version__}" in (share / "man" / "man1" / "headrace-get.1").read_text()
    completion = share / "bash-completion" / "completions" / "headrace"
    asked = run("bash", "-c", f'source "{completion}" && complete -p headrace')
    assert "headrace" in asked.stdout, asked.stderr
    assert (share / "zsh" / "site-functions" / "_headrace").read_text().startswith("#compdef headrace")
    assert "complete" in (share / "fish" / "vendor_completions.d" / "headrace.fish").read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_finds_nothing_wrong_with_the_unit(package: Package, tmp_path: Path) -> None:
    unit = package.prefix / "share" / "systemd" / "user" / "headrace@.service"
    (tmp_path / "run" / "systemd").mkdir(parents=True)
    places = {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "HOME": str(tmp_path)}
    checked = run("systemd-analyze", "verify", "--user", "--man=no", unit, env=places)
    assert [line for line in checked.stderr.splitlines() if "headrace" in line] == []


def test_the_wheel_and_the_archive_hold_what_they_should_and_no_more(package: Package) -> None:
    with zipfile.ZipFile(package.wheel) as wheel:
        names = wheel.namelist()
        metadata = message_from_string(wheel.read(f"headrace-{__version__}.dist-info/METADATA").decode())
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert len([line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]) == len(wanted)
    code = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*") if path.is_file()}
    code = {name for name in code if "__pycache__" not in name}
    assert {name for name in names if name.startswith("headrace/")} == code
    assert {"headrace/py.typed", "headrace/observe/rules/alerts.yml"} <= code
    with tarfile.open(package.sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    assert {"src", "tests", "docs", "scripts", "requirements", "Containerfile", "LICENSE", "CHANGELOG.md"} <= tops
    assert not {".venv", ".git", "build", "dist"} & tops


def test_the_version_stands_in_one_place(package: Package) -> None:
    pattern = re.compile(rf"(?<![\d.]){re.escape(__version__)}(?![\d.])")
    with tarfile.open(package.sdist) as archive:
        places = [
            member.name.split("/", 1)[1]
            for member in archive.getmembers()
            if member.isfile() and member.name.endswith((".py", ".toml"))
            if "/tests/" not in member.name and pattern.search(archive.extractfile(member).read().decode())  # type: ignore[union-attr]
        ]
    assert places == ["src/headrace/_version.py"]
