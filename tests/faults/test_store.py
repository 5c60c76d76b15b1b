"""An object store in trouble, in whole runs: nothing is lost, or what cannot be had is named."""

from __future__ import annotations

import pytest

from tests.faults.harness import Harness, Row
from tests.faults.proxy import Fault, Proxy, Rule

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("fault", ["busy", "wait", "reset", "short", "stall", "denied"])
def test_one_answer_in_twenty_is_bad(
    harness: Harness, undisturbed: list[Row], endpoint: str, fault: Fault
) -> None:
    with Proxy(endpoint) as proxy:
        proxy.rules = [Rule(fault, share=0.05, stall_s=1.0)]
        status, said = harness.run(fault, proxy.address)
        bad = sum(count for (_, kind), count in proxy.counts.items() if kind)
        print(fault, proxy.counts)
    assert status == 0, said[-3000:]
    assert bad >= 5, proxy.counts
    assert harness.manifest(fault) == undisturbed
