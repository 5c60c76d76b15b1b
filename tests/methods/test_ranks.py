"""Two ranks with half of the batch each learn what one process with the whole batch learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing import spawn

from curate.methods import METHODS
from tests.methods.two_ranks import CASES, PROCESSES, RANKS, STEPS, one_process, work

CLOSE = 1e-5  # of the largest value


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two found, of all methods."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(work, args=(str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def furthest(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, as a share of the largest value of all."""
    assert got.keys() == expected.keys()
    largest = max(float(x.abs().max()) for x in expected.values())
    return max(float((got[n] - x).abs().max()) for n, x in expected.items()) / largest


def test_no_method_is_left_out() -> None:
    assert {name for name, _, _ in CASES.values()} == set(METHODS)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one(case: str, ranks: list[dict[str, Any]]) -> None:
    alone = one_process(case)
    for step in range(STEPS):
        both = torch.stack([rank[case]["losses"][step] for rank in ranks])
        torch.testing.assert_close(both.mean(), alone["losses"][step], rtol=CLOSE, atol=1e-6)
        for rank in ranks:
            assert furthest(rank[case]["gradients"][step], alone["gradients"][step]) < CLOSE
    for rank in ranks:
        state = rank[case]["state"]
        assert state.keys() == alone["state"].keys()
        for name, expected in alone["state"].items():
            torch.testing.assert_close(state[name], expected, rtol=CLOSE, atol=CLOSE, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_in_two_parts_each_are_one(case: str, ranks: list[dict[str, Any]]) -> None:
    alone = one_process(case)
    found = [rank[f"{case} in parts"] for rank in ranks]
    both = torch.stack([rank["losses"][0] for rank in found])
    torch.testing.assert_close(both.mean(), alone["losses"][0], rtol=CLOSE, atol=1e-6)
    for rank in found:
        assert furthest(rank["gradients"][0], alone["gradients"][0]) < CLOSE


@pytest.mark.parametrize("case", CASES)
def test_the_second_step_depends_on_the_first(case: str) -> None:
    """And gradients are large enough to tell."""
    alone = one_process(case)
    assert furthest(alone["gradients"][1], alone["gradients"][0]) > 0.01
    assert max(float(x.abs().max()) for x in alone["gradients"][0].values()) > 1e-3


def test_negatives_of_other_ranks_as_constants_would_be_noticed(
    ranks: list[dict[str, Any]],
) -> None:
    """The same loss, and other gradients: those that a loss of the global batch has not."""
    alone = one_process("simclr")
    wrong = [rank["constant negatives"] for rank in ranks]
    first_loss = torch.stack([rank["losses"][0] for rank in wrong]).mean()
    torch.testing.assert_close(first_loss, alone["losses"][0])
    assert furthest(wrong[0]["gradients"][0], alone["gradients"][0]) > 100 * CLOSE


def test_gradients_of_two_gathers_do_not_mix(ranks: list[dict[str, Any]]) -> None:
    """A row counts once with weight 1, on rank 0, and once with 2, on rank 1."""
    for rank in ranks:
        for gradient in rank["gathered twice"].values():
            torch.testing.assert_close(gradient, torch.full((2, 3), 3.0))
