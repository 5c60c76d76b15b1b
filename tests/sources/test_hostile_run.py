"""A whole run over what people have on their disks: every stage meets it, and none falls."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from curate import storage
from curate.dataset.materialise import training_images
from curate.dataset.training_set import TrainingSet
from curate.pipeline import run
from curate.report.build import build
from curate.settings import RunSettings
from curate.settings import load as config
from tests.datasets import picture
from tests.imagery import tar

LATIN = os.fsdecode(b"caf\xe9")
KEYS = ["%25FF.png", "caf%E9/%41.png", "caf%E9/50%25caf%E9.png", "linked/1.png", "plain/é%20.png"]
NAMES = ["%FF.png", f"{LATIN}/%41.png", f"{LATIN}/50%{LATIN}.png", "linked/1.png", "plain/é%20.png"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> RunSettings:
    root = tmp_path_factory.mktemp("hostile")
    for folder in (f"set/{LATIN}", "set/plain", "store"):
        (root / folder).mkdir(parents=True)
    (root / "set/linked").symlink_to(root / "store")
    for seed, name in enumerate(NAMES):
        (root / "set" / name).write_bytes(picture(seed))
    os.mkfifo(root / "set/pipe.png")
    with open(root / f"set/{LATIN}.png", "wb") as file:
        file.truncate(30_000_000_000)
    members = [(f"{LATIN}/{seed}.png", picture(10 + seed)) for seed in range(3)]
    (root / "a-0.tar").write_bytes(tar([*members, (f"{LATIN}/9.png", picture(5)[:90])]))
    document = {
        "target": {"kind": "image_folder", "path": str(root / "set/plain")},
        "open": [
            {"name": "folder", "kind": "image_folder", "path": str(root / "set")},
            {"name": "tar", "kind": "webdataset", "path": str(root / "{a,a}-{0..0}.tar")},
        ],
        "encoder": {"backbone": "resnet18", "image_px": 32},
        "images": {"max_rejected_fraction": 0.5},
        "coreset": {"method": "all"},
        "output": str(root / "run"),
    }
    settings = config.parse(document, "test")
    run(settings)
    return settings


def test_every_image_is_selected_or_rejected_by_name(settings: RunSettings) -> None:
    output = Path(settings.output)
    manifest = pq.read_table(output / "coreset.parquet").to_pylist()
    assert sorted(row["key"] for row in manifest) == sorted(
        [*KEYS, *(f"caf%E9/{seed}" for seed in range(3))]
    )
    by_key = {row["key"]: row for row in manifest}
    for key, name in zip(KEYS, NAMES, strict=True):
        row = by_key[key]
        data = (output.parent / "set" / name).read_bytes()
        assert storage.read_bytes(row["uri"]) == data
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["label"] == (key.split("/")[0] if "/" in key else None)
    rejects = pq.read_table(output / "rejected").to_pylist()
    reasons = {row["key"]: row["reason"] for row in rejects}
    assert reasons.keys() == {"caf%E9.png", "caf%E9/9"}
    assert reasons["caf%E9.png"] == "30,000,000,000 bytes is over max_bytes 268435456"
    for file in (output / "embeddings/open").glob("*.arrow"):
        keys = pyarrow.ipc.open_file(str(file)).read_all()["key"].to_pylist()
        assert set(keys) <= by_key.keys()


def test_all_of_it_can_be_trained_on(settings: RunSettings, tmp_path: Path) -> None:
    index = training_images(settings, ["target", "coreset"], str(tmp_path))
    images = TrainingSet(str(tmp_path))
    assert (index.images, index.open_images, index.rejected) == (1 + 8, 8, 0)
    wanted = [picture(seed) for seed in (4, *range(5), 10, 11, 12)]
    assert sorted(images.image(i) for i in range(9)) == sorted(wanted)
    again = training_images(settings, ["open"], str(tmp_path / "open"))
    assert (again.images, again.rejected) == (9, 1), "a damaged one is for the decoder to refuse"


def test_all_of_it_can_be_seen(settings: RunSettings) -> None:
    built = build(settings.output)
    assert built.unreadable == 0 and built.thumbnails >= 8
