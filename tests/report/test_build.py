"""Whole reports, from runs of every shape, read as pages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from curate import cli, storage
from curate.errors import CurateError
from curate.report.build import build
from curate.report.collect import files, report, thumbnails
from curate.runfiles.files import RunFiles
from tests import datasets
from tests.datasets import shards_of
from tests.report import building
from tests.report.pages import read_all


def report_on(output: Path):
    """The report's pages, and what `build` says of them."""
    built = build(str(output))
    return read_all(output / "report"), built


@pytest.fixture(scope="module")
def merged(tmp_path_factory, merged_run) -> Path:
    """A real run over four sources in four formats, with images that were rejected."""
    return Path(datasets.copy_run(merged_run[0], tmp_path_factory.mktemp("merged"))["output"])


def test_of_a_real_run(merged) -> None:
    pages, built = report_on(merged)
    index = pages["index.html"]
    assert "40 of 116 images selected" in index.text
    assert "the budget of 40 images was full" in index.text
    for reason in ("not an image in a known format", "3×3 is under min_px 8", "no such file"):
        assert reason in index.text
    selected = set(pq.read_table(merged / "coreset.parquet")["sha256"].to_pylist())
    names = {thumbnails.name_of(files.ImageRow("", "", "", sha256=sha256)) for sha256 in selected}
    shown = {source.removeprefix("thumbs/") for source in pages["gallery-1.html"].images}
    assert names == shown
    assert built.unreadable == 0 and built.thumbnails == len(
        {s for page in pages.values() for s in page.images} - _of_rejects(pages)
    )
    for stem in ("gallery", "gallery-source", "gallery-class"):
        assert len(pages[f"{stem}-1.html"].images) == 40
    # Of what was refused, whatever can be seen: three pixels, and the top of a file that was cut
    assert sum(alt.startswith("thumbs/") for alt in index.images) > 40


def _of_rejects(pages) -> set[str]:
    others = {s for name, page in pages.items() if name != "index.html" for s in page.images}
    return set(pages["index.html"].images) - others


def test_a_rerun_keeps_thumbnails_and_drops_what_is_not_shown(merged, tmp_path) -> None:
    output = Path(shutil.copytree(merged, tmp_path / "elsewhere"))  # a run may be moved
    build(str(output))
    folder = output / "report"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("thumbs/*")}
    pages = {path.name: path.read_bytes() for path in folder.glob("*.html")}
    (folder / "gallery-7.html").write_text("of a larger selection")
    (folder / "thumbs" / "0123.webp").write_bytes(b"of another selection")
    (folder / "notes.html").write_text("mine")
    build(str(output))
    assert {path: path.stat().st_mtime_ns for path in folder.glob("thumbs/*")} == before
    again = {path.name: path.read_bytes() for path in folder.glob("*.html")}
    assert again.pop("notes.html") == b"mine"
    assert again == pages


def test_thumbnails_are_small(merged) -> None:
    build(str(merged))
    for path in (merged / "report" / "thumbs").iterdir():
        assert path.stat().st_size < 8_000
        with thumbnails.Image.open(path) as image:
            assert image.format == "WEBP" and max(image.size) <= thumbnails.SIDE_PX


def test_images_that_are_gone_leave_a_frame_and_a_count(merged, merged_run, tmp_path) -> None:
    output = Path(
        shutil.copytree(merged, tmp_path / "run", ignore=shutil.ignore_patterns("report"))
    )
    manifest = pq.read_table(output / "coreset.parquet").to_pylist()
    gone = {row["sha256"] for row in manifest if row["source"] == "folder"}
    still = {row["sha256"] for row in manifest if row["source"] != "folder"}
    folder = Path(merged_run[0]["open"][0]["path"])
    folder.rename(folder.with_name("away"))
    try:
        pages, built = report_on(output)
    finally:
        folder.with_name("away").rename(folder)
    assert gone - still and built.unreadable
    assert "not readable any more" in pages["index.html"].text
    assert "not readable" in pages["gallery-1.html"].text
    assert len(pages["gallery-1.html"].images) < 40


@pytest.mark.parametrize(
    ("coreset", "said"),
    [
        (
            {"method": "random", "clusters": 1, "tau": None, "budget": 12},
            "at random, as a baseline",
        ),
        ({"method": "all", "clusters": 1, "tau": None, "budget": None}, "300 of 300 images"),
        ({"clusters": 1, "tau": None, "budget": 250}, "of k = 1 centroids"),
        ({"budget": 0}, "0 of 300 images selected"),
        ({"tau": 1.0, "budget": None}, "because the next round's picks"),
        ({"tau": None, "budget": None}, "because no image was left"),
        ({"method": "ratio", "budget": 20}, "those most like it were taken"),
        ({"method": "resample", "budget": 20}, "a sample was drawn, the likelier the more"),
        ({"method": "gate", "budget": 20, "tau": None}, "likeliest in the target set the most"),
        ({"budget": 20, "tau": None}, "Cosine to the most similar other image"),
        ({"budget": 20, "tau": None, "dedup": "exact"}, "Images that were left out"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_of_every_method(coreset, said, tmp_path, ray_session) -> None:
    pages, _ = report_on(building.write_run(tmp_path, coreset=coreset, labels=["a", None, "b"]))
    assert said in pages["index.html"].text
    assert "nan" not in pages["index.html"].text.split()


def test_of_an_empty_coreset(tmp_path, ray_session) -> None:
    pages, built = report_on(building.write_run(tmp_path, coreset={"budget": 0}))
    assert "No image was selected." in pages["gallery-1.html"].text
    assert not pages["gallery-1.html"].images and built.unreadable == 0


def test_of_one_image(tmp_path, ray_session) -> None:
    output = building.write_run(tmp_path, targets=1, opened=1, coreset={"clusters": 1, "budget": 1})
    pages, built = report_on(output)
    assert "1 of 1 image selected" in pages["index.html"].text
    assert len(pages["gallery-1.html"].images) == 1 and built.pages == 5


def test_without_labels(tmp_path, ray_session) -> None:
    pages, _ = report_on(building.write_run(tmp_path))
    assert "Which classes were selected" not in pages["index.html"].text
    assert "(no label)" in pages["gallery-class-1.html"].text


@pytest.mark.slow
def test_of_50_000_selected(tmp_path, ray_session) -> None:
    output = building.write_run(
        tmp_path,
        targets=2000,
        opened=60_000,
        per_unit=5000,
        pictures=1500,
        labels=["a", "b", "c"],
        coreset={"clusters": 300, "tau": None, "budget": 50_000},
    )
    pages, built = report_on(output)
    assert "1,000 of 50,000 selected images are shown" in pages["gallery-1.html"].text
    assert "200 of 300 centroids are shown" in pages["centroids-1.html"].text
    assert sum(len(pages[f"gallery-{n}.html"].images) for n in range(1, 11)) == 1000
    assert "gallery-11.html" not in pages and built.thumbnails <= report.GALLERY + 200 * 12
    size = sum(path.stat().st_size for path in (output / "report").rglob("*") if path.is_file())
    assert size < 20e6
    assert built.seconds < 120  # a minute, on a machine that has nothing else to do


def test_everything_from_outside_is_text(tmp_path, ray_session) -> None:
    labels = [building.EVIL, building.EVIL_ATTRIBUTE, "</title>", None]
    output = building.write_run(
        tmp_path / building.EVIL.replace("/", ""),
        labels=labels,
        key=building.EVIL + "{}",
        reason=f"damaged: {building.EVIL}",
    )
    building.write_results(output, building.EVIL)
    (output / "selections").mkdir()
    arm = f"{building.EVIL_ATTRIBUTE}.parquet".replace("/", "")
    shutil.copy(output / "coreset.parquet", output / "selections" / arm)
    pages, _ = report_on(output)  # which reads them strictly
    text = pages["index.html"].text
    assert text.count(building.EVIL) > 20 and building.EVIL_ATTRIBUTE in text
    scripts = [path.read_text().count("<script") for path in (output / "report").glob("*.html")]
    assert sorted(scripts)[-1] == 2 and sum(scripts) == 2  # the filter, and its data
    assert all("secret" not in path.read_text() for path in (output / "report").glob("*.html"))


def test_shows_what_was_measured_and_other_thresholds(tmp_path, ray_session) -> None:
    output = building.write_run(tmp_path, coreset={"tau": 0.8, "budget": None})
    building.write_results(output)
    text = report_on(output)[0]["index.html"].text
    assert "33.3 ± 0.5 %" in text and "3.250 bits" in text
    assert "30.0 %1 seed, 1,800 images" in text and "simcore, seed 1" in text
    assert "38.0 ± 1.2 %" in text and "3,360 steps" in text and "1.36 ×" in text
    assert "0.8 (this run)" in text and "0.98" in text
    rounds = pq.read_table(output / "rounds.parquet")["objective"].to_pylist()
    assert f"{0.8 * rounds[0]:.4f}" in text


def test_a_comparison_may_lie_above_the_run(tmp_path, ray_session) -> None:
    output = building.write_run(tmp_path)
    building.write_results(output)
    (output / "comparison.json").rename(tmp_path / "comparison.json")
    assert "Against other selections" in report_on(output)[0]["index.html"].text


def test_other_selections_begin_with_simcore(tmp_path) -> None:
    for name in ("oracle", "random-0", "random-1", "simcore"):
        storage.write_bytes(str(tmp_path / "selections" / f"{name}.parquet"), b"")
        storage.write_bytes(str(tmp_path / "selections" / f"{name}.json"), b"")
    found = files.other_manifests(RunFiles(str(tmp_path)))
    assert list(found) == ["simcore", "oracle", "random-0"]
    assert Path(found["simcore"]).exists()


def test_a_part_that_cannot_be_made_says_why(tmp_path, ray_session) -> None:
    output = building.write_run(tmp_path, labels=["a"])
    for shard in shards_of(output, "target"):
        shard.write_bytes(b"damaged")
    text = report_on(output)[0]["index.html"].text
    assert "images selected" in text and "not a shard of this run" in text
    for folder in (output / "embeddings").glob("*/shards"):
        shutil.rmtree(folder)
    assert "images selected" in report_on(output)[0]["index.html"].text


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("summary.json", r"no finished run here \(no summary.json\); run `curate run` first"),
        ("coreset.parquet", r"coreset.parquet: no such file; run the same"),
        ("rounds.parquet", r"rounds.parquet: no such file; run the same"),
        ("plan/000000/units.parquet", r"run/plan: no plan; run the same"),
        ("config.yaml", r"no run here \(no config.yaml\)"),
    ],
)
def test_missing_files_are_one_line(damage, named, tmp_path, ray_session) -> None:
    output = building.write_run(tmp_path, opened=20)
    (output / damage).unlink()
    with pytest.raises(CurateError, match=named):
        build(str(output))


@pytest.mark.parametrize(
    ("damaged", "data", "named"),
    [
        ("summary.json", b"{", "summary.json: damaged: .*; remove it and run again"),
        ("summary.json", b'{"sources": {}}', "stopped before the selection"),
        ("coreset.parquet", b"PAR1 but not really", "coreset.parquet: damaged"),
        ("rounds.parquet", b"", "rounds.parquet: damaged"),
        ("evaluate/results.json", b"[]", "not what `curate evaluate` writes"),
        ("evaluate/results.json", b'{"results": [{}]}', "not what `curate evaluate` writes"),
        ("comparison.json", b"3", "not what `curate compare` writes"),
        ("comparison.json", b'{"arms": 3}', "not what `curate compare` writes"),
    ],
)
def test_damaged_files_are_one_line(damaged, data, named, tmp_path, ray_session) -> None:
    output = building.write_run(tmp_path, opened=20)
    storage.write_bytes(str(output / damaged), data)
    with pytest.raises(CurateError, match=named) as raised:
        build(str(output))
    assert "\n" not in str(raised.value)


def test_the_command(tmp_path, ray_session, capsys) -> None:
    output = building.write_run(tmp_path, opened=20)
    assert cli.main(["report", str(output)]) == 0
    assert f"report: {output}/report/index.html" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "nothing")]) == 1
    assert "run `curate run` first" in capsys.readouterr().err


def test_centroids_show_their_nearest_first_and_last(tmp_path, ray_session) -> None:
    output = building.write_run(tmp_path, targets=90, per_unit=20, pictures=400)
    found = report.collect(str(output), str(output / "report"))
    manifest = pq.read_table(output / "coreset.parquet").to_pylist()
    centres = np.load(output / "centroids.npy")
    paths = shards_of(output, "target")
    tables = [building.pa.ipc.open_file(str(path)).read_all() for path in paths]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    rows = np.concatenate([np.stack(table["embedding"].to_numpy()) for table in tables])
    similar = rows.astype(np.float32) @ centres.T
    assert len(found.centroids) == 5
    for one in found.centroids:
        picks = [row["key"] for row in manifest if row["centroid"] == one.number]
        assert one.selected == len(picks)
        shown = [tile.key for tile in one.first + one.last]
        assert shown == (picks if len(picks) <= 8 else picks[:4] + picks[-4:])
        best = np.argsort(-similar[:, one.number], kind="stable")[:4]
        assert [tile.key for tile in one.nearest] == [keys[row] for row in best]
    assert json.loads((output / "summary.json").read_text())["rounds"] == found.rounds
