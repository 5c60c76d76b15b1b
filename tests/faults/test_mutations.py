"""Damaged files by the hundred: none crashes a reader, hangs it, eats its memory, or is lost."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.bounded import outcomes

CHECKS = ["image", "tar", "tar_before_damage", "table", "url_list"]


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
