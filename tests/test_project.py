"""The project's own files keep their promises: locks, scripts, README, CI."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from headrace.cli.options import OPTIONS

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(path: Path) -> list[tuple[Requirement, str]]:
    """Each requirement of a lock file with the rest of its block, where its hashes are."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    blocks = re.findall(r"^(\S.*?)(?: \\)?\n((?:[ \t]+.*\n)*)", text, flags=re.MULTILINE)
    return [(Requirement(line), rest) for line, rest in blocks]


def test_there_are_seven_lock_files():
    names = ["build.txt", "dev.txt", "docs.txt", "fuzz.txt", "peers.txt", "runtime.txt", "tools.txt"]
    assert [path.name for path in LOCKS] == names


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").iterdir()), ids=lambda path: path.name)
def test_a_requirement_file_names_no_registry(path):
    for line in path.read_text().splitlines():
        assert "://" not in line
        assert not line.startswith("-"), "options (an index, links, another file) have no place here"


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_everything_locked_is_exact_and_has_a_hash(path):
    requirements = locked(path)
    assert requirements
    for requirement, rest in requirements:
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], requirement
        assert requirement.url is None
        assert "--hash=sha256:" in rest, requirement


@pytest.mark.parametrize(
    ("wanted", "lock"),
    [
        (PROJECT["project"]["dependencies"], "runtime.txt"),
        (PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"], "dev.txt"),
        (PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["docs"], "docs.txt"),
        (PROJECT["dependency-groups"]["fuzz"], "fuzz.txt"),
        (PROJECT["build-system"]["requires"], "dev.txt"),
        (PROJECT["build-system"]["requires"], "build.txt"),
    ],
)
def test_the_locks_hold_what_pyproject_asks_for(wanted, lock):
    versions: dict[str, list[str]] = {}
    for requirement, _ in locked(ROOT / "requirements" / lock):
        version = str(requirement.specifier).removeprefix("==")
        versions.setdefault(requirement.name, []).append(version)
    for line in wanted:
        requirement = Requirement(line)
        assert any(requirement.specifier.contains(version) for version in versions.get(requirement.name, [])), (
            f"{line} is not in {lock}; run scripts/lock"
        )


@pytest.mark.parametrize("other", ["dev.txt", "docs.txt"])
def test_the_other_locks_hold_the_same_versions_as_runtime(other):
    # Not for which systems: dev may need one on more of them.
    larger, runtime = (
        {(requirement.name, str(requirement.specifier)) for requirement, _ in locked(ROOT / "requirements" / name)}
        for name in (other, "runtime.txt")
    )
    assert runtime <= larger


def test_no_other_lock_file_is_there():
    names = ["uv.lock", "poetry.lock", "Pipfile.lock", "pdm.lock", "uv.toml", "pip.conf"]
    assert [name for name in names if (ROOT / name).exists()] == []
    assert "uv" not in PROJECT["tool"]


def test_every_script_is_executable_and_says_what_runs_it():
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()] + [ROOT / ".ci" / "run"]
    assert {"check", "lock", "setup", "test", "try"} <= {path.name for path in scripts}
    for path in scripts:
        assert os.access(path, os.X_OK), path
        assert path.read_bytes().startswith(b"#!/usr/bin/env "), path


def test_bash_scripts_stop_at_the_first_error():
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]:
        if path.is_file() and path.read_text().startswith("#!/usr/bin/env bash"):
            assert "\nset -euo pipefail\n" in path.read_text(), path


def test_readme_opens_with_the_two_commands_and_ci_runs_its_test_command():
    first_screen = (ROOT / "README.md").read_text().splitlines()[:24]
    commands = [line.split()[0] for line in first_screen if line.startswith("scripts/")]
    assert commands == ["scripts/try", "scripts/test"]
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_container_file_copies_what_is_there_and_sets_what_exists():
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    copied = [name for word, *rest in lines if word == "COPY" and not rest[0].startswith("--") for name in rest[:-1]]
    assert {"src", "scripts", "deploy", "requirements", "hatch_build.py"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    files = re.findall(r"-r (\S+)", text)
    assert files == ["requirements/runtime.txt", "requirements/build.txt"]
    assert text.count("pip install") == text.count("--require-hashes") + text.count("--no-index")
    known = {str(option.envvar) for options in OPTIONS.values() for option in options} | {"HEADRACE_HOME"}
    assert set(re.findall(r"\bHEADRACE_\w+", text)) <= known
