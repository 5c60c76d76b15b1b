"""An object store in trouble, in whole runs: nothing is lost, or what cannot be had is named."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from curate import storage
from tests.datasets import picture
from tests.faults.harness import Harness, Row
from tests.faults.proxy import Fault, Proxy, Rule
from tests.imagery import tar

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("fault", ["busy", "wait", "reset", "short", "stall", "denied"])
def test_one_answer_in_twenty_is_bad(
    harness: Harness, undisturbed: list[Row], endpoint: str, fault: Fault
) -> None:
    with Proxy(endpoint) as proxy:
        proxy.rules = [Rule(fault, share=0.05, stall_s=1.0)]
        status, said = harness.run(fault, proxy.address)
        bad = sum(count for (_, kind), count in proxy.counts.items() if kind)
    assert status == 0, said[-3000:]
    assert bad >= 5, proxy.counts
    assert harness.manifest(fault) == undisturbed


@pytest.mark.parametrize("seconds", [20, 60])
def test_nothing_answers_for_a_while(
    harness: Harness, undisturbed: list[Row], endpoint: str, seconds: int
) -> None:
    name = f"outage-{seconds}"
    with Proxy(endpoint) as proxy:
        status, said = harness.run(name, proxy.address, meanwhile=lambda: proxy.outage(seconds))
        refused = sum(count for (_, fault), count in proxy.counts.items() if fault)
    assert status == 0, said[-3000:]
    assert refused >= 10
    assert harness.manifest(name) == undisturbed


def test_what_is_denied_is_named_and_made_up_for(
    harness: Harness, undisturbed: list[Row], endpoint: str
) -> None:
    """A lasting 403, of one tar: the rest is embedded, and the next run does what was left."""
    patient = replace(harness, settings={"embed": {"unit_images": 16, "attempts": 2}})
    with Proxy(endpoint) as proxy:
        proxy.rules = [Rule("denied", method="GET", path=r"/tars/2\.tar$")]
        status, said = patient.run("denied-long", proxy.address)
        assert status == 1, said[-3000:]
        last = said.strip().splitlines()[-1]
        assert "1 units" in last and f"{harness.bucket}/tars/2.tar" in last, last
        done = set(harness.shards("denied-long"))
        assert len(done) == 14
        proxy.rules = []
        status, said = patient.run("denied-long", proxy.address)
    assert status == 0, said[-3000:]
    assert done < set(harness.shards("denied-long"))
    assert harness.manifest("denied-long") == undisturbed


@pytest.mark.parametrize("fault", ["gone", "changed"])
def test_what_is_not_as_planned_is_named_and_waits_for_a_word(
    harness: Harness, endpoint: str, fault: Fault
) -> None:
    """A tar that goes, or is another, between being planned and being read."""
    at = f"{harness.bucket}/of-{fault}"
    tars = {name: f"{at}/{name}.tar" for name in ("stays", "differs")}
    for seed, uri in enumerate(tars.values()):
        storage.write_bytes(uri, tar([(f"{i}.png", picture(40 * seed + i)) for i in range(20)]))
    sources = [{"name": "tars", "kind": "webdataset", "path": f"{at}/*.tar"}]
    settings = {"open": sources, "coreset": {"method": "all"}, "embed": {"attempts": 2}}
    mine = replace(harness, settings=settings)
    with Proxy(endpoint) as proxy:
        # The list of the bucket shows it as it was
        proxy.rules = [Rule(fault, path=r"/differs\.tar$")]
        status, said = mine.run(fault, proxy.address)
    assert status == 1 and tars["differs"] in said.splitlines()[-1], said[-3000:]
    storage.remove_tree(tars["differs"])
    left = {tars["stays"]: 20}
    if fault == "changed":
        storage.write_bytes(tars["differs"], tar([(f"{i}.png", picture(i)) for i in range(90, 97)]))
        left[tars["differs"]] = 7
    status, said = mine.run(fault, endpoint)
    assert status == 1 and tars["differs"] in said.splitlines()[-1], said[-3000:]
    status, said = mine.run(fault, endpoint, "--accept-changes")
    assert status == 0, said[-3000:]
    assert Counter(row["uri"] for row in mine.manifest(fault)) == left
