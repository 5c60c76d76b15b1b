"""The examples as they stand, on real images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from curate.pipeline import run
from curate.settings import load as config

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("CURATE_TEST_DATA"), reason="CURATE_TEST_DATA is not set")
def test_pets_accounts_for_every_image(tmp_path, monkeypatch, ray_session) -> None:
    monkeypatch.setenv("DATA", os.environ["CURATE_TEST_DATA"])
    settings = config.load(
        str(ROOT / "examples" / "pets.yaml"), [f"output={tmp_path}/run", "coreset.budget=0.05"]
    )
    summary = run(settings)
    seen = {name: row.seen for name, row in summary.sources.open.items()}
    assert seen == {"tiny-imagenet": 22_850, "cifar10": 10_000, "imagenet-fullres": 160}
    assert summary.sources.target["target"].seen == 1_800
    assert all(row.rejected == 0 for row in summary.sources.open.values())
    assert summary.outcome.selected == round(0.05 * 33_010)
