"""Every input that ever crashed a fuzz target, the seeds, and some changes of them. Long runs are `scripts/fuzz`."""

from __future__ import annotations

import random

import pytest

from fuzz.run import CORPUS, changed
from fuzz.seeds import seeds
from fuzz.targets import TARGETS

SLOW = {"handshake_client", "handshake_host", "journal", "writing"}  # a key exchange is 10 ms of pure Python


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_corpus_and_some_changes_of_it(name: str) -> None:
    target, inputs = TARGETS[name], [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert inputs
    for data in inputs:
        target(data)
    rng = random.Random(name)
    for _ in range(10 if name in SLOW else 200):
        target(changed(rng, rng.choice(inputs), rng.choice(inputs)))


def test_every_target_has_seeds_that_lie_in_the_corpus() -> None:
    found = {(path.parent.name, path.read_bytes()) for path in CORPUS.glob("*/seed-*")}
    fresh = set(seeds())
    assert {name for name, _ in found} == {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert fresh <= found, "run python -m fuzz.seeds"
