"""Damaged files by the hundred: none crashes a reader, hangs it, eats its memory, or is lost."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from curate.errors import CurateError
from curate.sources import Changed, plan_source
from tests.faults import mutations
from tests.faults.bounded import outcomes
from tests.faults.checks import accounted
from tests.sources.reading import source

CHECKS = ["image", "tar", "tar_before_damage", "table"]


def check(name: str, seeds: range) -> None:
    found = outcomes("tests.faults.checks", name, seeds)
    failed = {seed: text for seed, text in found.items() if text.startswith("FAILED")}
    assert not failed, f"{name}: {failed}"
    assert len(Counter(found.values())) >= 2, "damage makes a difference, but not to every file"


def test_mutated_images_are_refused_or_decoded_and_nothing_else() -> None:
    check("image", range(2000))


@pytest.mark.parametrize("name", CHECKS[1:])
def test_mutated_archives_account_for_every_image(name: str) -> None:
    check(name, range(200))


def test_mutated_lists_are_planned_and_read_or_refused(tmp_path: Path, ray_session: None) -> None:
    """As they are, and as they were when they were planned, before the damage."""
    found = Counter(_list(tmp_path, seed) for seed in range(200))
    assert found.keys() == {"refused", "changed", "read"} and min(found.values()) > 5


def _list(folder: Path, seed: int) -> str:
    whole, damaged = mutations.mutated(random.Random(seed), mutations.lists())
    path = folder / f"{seed}{random.Random(seed).choice(['.txt', '.csv'])}"
    settings = source("url_list", str(path))
    path.write_bytes(damaged)
    try:
        for unit in plan_source(settings, 4, str(folder / "plan")):
            accounted(settings, unit)
        path.write_bytes(whole)
        units = plan_source(settings, 4, str(folder / "plan"))
    except CurateError as error:
        assert "\n" not in str(error) and len(str(error)) < 800
        return "refused"
    path.write_bytes(damaged)
    try:
        for unit in units:
            accounted(settings, unit)
    except Changed:
        return "changed"
    return "read"


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_many_more(name: str) -> None:
    check(name, range(2000, 20_000 if name == "image" else 4_000))


def test_what_must_not_be_is_told_by_its_seed() -> None:
    """Exceptions, crashes, hangs and greed, each of which another check would only suspect."""
    found = outcomes("tests.faults.misbehaviour", "misbehave", range(6))
    assert found == {
        0: "well",
        1: "FAILED: ValueError: seed 1",
        2: "FAILED: ended with -11",
        3: "FAILED: took too long",
        4: "FAILED: MemoryError: ",
        5: "well",
    }
