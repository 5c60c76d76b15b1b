"""What sources know of images: in the manifest, in what may be selected, in quotas; against the
files read by others."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.coreset.recut import Limits, recut
from curate.embedding.metadata import beside
from curate.errors import CurateError
from curate.pipeline import run
from curate.runfiles.files import RunFiles
from curate.runfiles.run import Run
from curate.runfiles.store import prune
from curate.settings import load as config
from tests.datasets import picture

pytestmark = pytest.mark.usefixtures("ray_session")

SEEDS = {"tars": range(0, 40), "tables": range(40, 80), "listed": range(80, 110)}
BROKEN = {3, 44, 55, 90}
DAMAGED = 1  # its .json
LICENSES = ("cc0", "cc-by", "all rights", None)

Known = dict[str, Any]

TABLE = {
    "taken": pa.date32(),
    "license": pa.string(),
    "score": pa.float32(),
    "year": pa.int16(),
    "image": pa.binary(),
    "id": pa.string(),
}


def known_of(seed: int) -> Known:
    known: Known = {"license": LICENSES[seed % 4], "score": seed / 8, "year": 2000 + seed % 9}
    return {name: value for name, value in known.items() if value is not None}


def image(seed: int) -> bytes:
    return b"no image" if seed in BROKEN else picture(seed)


def write_tars(folder: Path) -> None:
    """Every image with its .json somewhere in the tar."""
    for number, seeds in enumerate((SEEDS["tars"][:25], SEEDS["tars"][25:])):
        members = [(f"{seed:04d}.png", image(seed)) for seed in seeds]
        for seed in reversed(seeds):
            said = json.dumps({**known_of(seed), "deep": {"seed": seed}})
            members.append((f"{seed:04d}.json", said.encode()[: 9 if seed == DAMAGED else None]))
        members += [("other.json", b"[1]")]
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for name, data in members:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Known:
    folder = tmp_path_factory.mktemp("known")
    for name in ("tars", "tables", "plain", "target"):
        (folder / name).mkdir()
    write_tars(folder / "tars")
    rows = [{**known_of(seed), "image": image(seed), "id": str(seed)} for seed in SEEDS["tables"]]
    rows = [{"taken": date(2020, 1, 1 + number % 9), **row} for number, row in enumerate(rows)]
    table = pa.Table.from_pylist(rows, pa.schema(TABLE))
    pq.write_table(table, folder / "tables" / "0.parquet", row_group_size=16)
    with open(folder / "list.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["url", "score", "license", "code"], extrasaction="ignore")
        writer.writeheader()
        for seed in SEEDS["listed"]:
            (folder / f"{seed}.png").write_bytes(image(seed))
            writer.writerow({"url": f"{seed}.png", "code": f"00{seed}", **known_of(seed)})
    for seed in range(200, 206):
        (folder / "plain" / f"{seed}.png").write_bytes(picture(seed))
    for seed in range(300, 312):
        (folder / "target" / f"{seed}.png").write_bytes(picture(seed))
    return {
        "target": {"kind": "image_folder", "path": str(folder / "target")},
        "open": [
            {"name": "tars", "kind": "webdataset", "path": f"{folder}/tars/*.tar"},
            {
                "name": "tables",
                "kind": "parquet",
                "path": f"{folder}/tables/*.parquet",
                "key_column": "id",
            },
            {"name": "listed", "kind": "url_list", "path": f"{folder}/list.csv"},
            {"name": "plain", "kind": "image_folder", "path": str(folder / "plain")},
        ],
        "encoder": {"backbone": "test_resnet", "image_px": 32, "crop_fraction": 1.0},
        "embed": {"unit_images": 16},
        "images": {"max_rejected_fraction": 0.5},
        "coreset": {"clusters": 3, "tau": None},
        "output": str(folder / "run"),
    }


def started(document: Known, **coreset: Any) -> Any:
    return run(config.parse({**document, "coreset": {**document["coreset"], **coreset}}, "test"))


def manifest_of(document: Known) -> list[Known]:
    table = pq.read_table(Path(document["output"]) / "coreset.parquet")
    rows: list[Known] = table.to_pylist()
    return rows


def seed_of(row: Known) -> int:
    return int(Path(row["key"]).name.removesuffix(".png"))


def test_columns_are_kept(document: Known) -> None:
    """Of every image what its source says, though others between them were rejected."""
    started(document)
    summary = started(document, keep=["score", "license", "year", "deep", "taken", "code"])
    assert summary.embedded_now == 0, "for a column no image is embedded anew"
    rows = manifest_of(document)
    assert len(rows) == 40 + 40 + 30 + 6 - len(BROKEN)
    for row in rows:
        seed, known = seed_of(row), known_of(seed_of(row))
        if row["source"] == "plain" or (row["source"], seed) == ("tars", DAMAGED):
            known = {}
        if row["source"] == "listed":
            known.pop("year")
        expected = {name: known.get(name) for name in ("license", "score", "year")}
        assert {name: row[name] for name in expected} == expected, row
        assert row["deep"] == (
            json.dumps({"seed": seed}) if row["source"] == "tars" and known else None
        )
        day = date(2020, 1, 1 + (seed - 40) % 9)
        assert row["taken"] == (day if row["source"] == "tables" else None)
        assert row["code"] == (f"00{seed}" if row["source"] == "listed" else None)
    schema = pq.read_schema(Path(document["output"]) / "coreset.parquet")
    assert schema.names[-6:] == ["score", "license", "year", "deep", "taken", "code"]
    assert str(schema.field("score").type) == "double" and str(schema.field("year").type) == "int64"
    first = (Path(document["output"]) / "coreset.parquet").read_bytes()
    started(document, keep=["score", "license", "year", "deep", "taken", "code"])
    assert (Path(document["output"]) / "coreset.parquet").read_bytes() == first


def test_where_and_quotas(document: Known) -> None:
    where = "license in ('cc0', 'cc-by') and (score < 9 or year is null) and width >= 24"
    quotas = [{"by": "license", "most": 9}, {"by": "license", "most": 5, "of": ["cc-by"]}]

    def may(row: Known) -> bool:
        known = known_of(seed_of(row))
        if row["source"] == "plain" or (row["source"], seed_of(row)) == ("tars", DAMAGED):
            return False
        fits = known["score"] < 9 or row["source"] == "listed"
        return known.get("license") in ("cc0", "cc-by") and fits

    started(document)
    everything = manifest_of(document)
    summary = started(document, where=where, keep=["license"])
    allowed = {row["key"] for row in everything if may(row)}
    assert {row["key"] for row in manifest_of(document)} == allowed
    left_out = {"not as coreset.where says": len(everything) - len(allowed)}
    assert summary.outcome.left_out == left_out
    started(document, where=where, quotas=quotas, budget=14, keep=["license"])
    counts = Counter(row["license"] for row in manifest_of(document))
    assert counts == {"cc0": 9, "cc-by": 5}
    recut(document["output"], Limits(budget=6))
    uri = RunFiles(document["output"]).recut("budget-6")
    found = pq.read_table(uri)
    assert len(found) == 6 and set(found["license"].to_pylist()) <= {"cc0", "cc-by"}


@pytest.mark.parametrize(
    ("coreset", "said"),
    [
        ({"keep": ["licence"]}, "no image has a column 'licence'; there are .*license"),
        ({"where": "nothing > 3"}, "no image has a column 'nothing'"),
        ({"quotas": [{"by": "nobody", "most": 3}]}, "no image has a column 'nobody'"),
        ({"keep": ["width"]}, "coreset.keep: width: every manifest has it"),
        ({"keep": ["year", "year"]}, "coreset.keep: year: comes twice"),
        ({"where": "score > 'a'"}, "coreset.where: .*score is double"),
        ({"where": "score >"}, "coreset.where=score >: does not parse at its end"),
    ],
)
def test_what_is_not_known(document: Known, coreset: Known, said: str) -> None:
    with pytest.raises(CurateError, match=said):
        started(document, **coreset)


def test_a_column_that_no_source_has_is_refused_before_an_image_is_read(
    document: Known, tmp_path: Path
) -> None:
    mine = {**document, "open": document["open"][1:], "output": str(tmp_path / "run")}
    with pytest.raises(CurateError, match="no image has a column 'licence'; there are"):
        started(mine, keep=["licence", "year"])
    assert not (tmp_path / "run" / "embeddings" / "shards").exists()
    assert not list((tmp_path / "run").rglob("*.arrow"))


def test_of_files_that_are_no_more_what_was_embedded(document: Known, tmp_path: Path) -> None:
    """Rows of others would stand beside the embeddings."""
    listed = tmp_path / "list.csv"
    listed.write_text(Path(document["open"][2]["path"]).read_text())
    for seed in SEEDS["listed"]:
        (tmp_path / f"{seed}.png").write_bytes(image(seed))
    mine = {**document, "open": [{**document["open"][2], "path": str(listed)}]}
    mine["output"] = str(tmp_path / "run")
    started(mine, keep=["score"])
    assert [row["score"] for row in manifest_of(mine)] == [
        seed_of(row) / 8 for row in manifest_of(mine)
    ]
    files = Run.open(mine["output"])
    assert prune(str(tmp_path / "run" / "embeddings"), remove=False).uris == []
    listed.write_text(listed.read_text().replace("cc0", "cc1"))
    assert beside(files, ["score"]).schema.names == ["score"], "was read before"
    with pytest.raises(CurateError, match=r"list.csv: changed since it was planned; run again"):
        beside(files, ["license"])
