"""Units: where a list is cut, and by what a unit is known again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from curate.sources import Unit
from curate.sources.units import cuts
from tests.imagery import jpeg, tar
from tests.sources.reading import parquet, plan_source, read_unit, source, write

Pieces = list[tuple[int, ...]]


def hashes(rng: np.random.Generator, images: int) -> np.ndarray:
    return rng.integers(0, 1 << 32, images, np.uint32)


def pieces(of: np.ndarray, mean: int) -> Pieces:
    """The images of each unit."""
    return [tuple(of[low:high].tolist()) for low, high in cuts(of, mean)]


@pytest.mark.parametrize("mean", [1, 2, 3, 4, 7, 50])
@pytest.mark.parametrize("images", [0, 1, 2, 49, 50, 51, 100, 101, 1000])
def test_all_images_once_in_order_in_units_of_bounded_size(mean: int, images: int) -> None:
    rng = np.random.default_rng([mean, images])
    for of in (hashes(rng, images), np.full(images, 1, np.uint32), np.zeros(images, np.uint32)):
        found = cuts(of, mean)
        assert [i for low, high in found for i in range(low, high)] == list(range(images))
        sizes = [high - low for low, high in found]
        assert all(mean / 4 <= size for size in sizes[:-1])
        assert all(1 <= size <= 2 * mean for size in sizes)


def test_units_are_of_about_the_mean() -> None:
    of = hashes(np.random.default_rng(0), 200_000)
    assert 0.7 < len(of) / len(cuts(of, 100)) / 100 < 1.3


@pytest.mark.parametrize("mean", [4, 20, 100])
def test_an_image_more_or_less_changes_few_units(mean: int) -> None:
    """Those that it falls into, up to the next place where both cut: never all that follow."""
    rng = np.random.default_rng(mean)
    counts = []
    for _ in range(200):
        more = hashes(rng, int(rng.integers(20, 60)) * mean)
        less = np.delete(more, rng.integers(len(more)))
        counts.append(len(set(pieces(more, mean)) - set(pieces(less, mean))))
        assert counts[-1] >= 1
    assert np.mean(np.equal(counts, 1)) > 0.5
    assert np.mean(counts) < 2


# Digests


def units_of(root: Path, **settings: object) -> list[Unit]:
    return plan_source(source("image_folder", str(root), **settings), 4)


def test_a_folder_planned_twice_has_the_same_units(tmp_path: Path) -> None:
    write(str(tmp_path), {f"{i:03d}.jpg": b"%d" % i for i in range(60)})
    before = units_of(tmp_path)
    assert len({unit.digest for unit in before}) == len(before) > 5
    assert [unit.digest for unit in units_of(tmp_path)] == [unit.digest for unit in before]
    assert sum(unit.size for unit in before) == 10 + 2 * 50

    os.utime(tmp_path / "030.jpg", ns=(1, 1))
    touched = units_of(tmp_path)
    (changed,) = [i for i, unit in enumerate(touched) if unit.digest != before[i].digest]
    keys = [item.key for item in read_unit(source("image_folder", str(tmp_path)), touched[changed])]
    assert "030.jpg" in keys

    write(str(tmp_path), {"015a.jpg": b"new"})
    grown = units_of(tmp_path)
    assert 1 <= len({unit.digest for unit in grown} - {unit.digest for unit in touched}) <= 4
    assert sum(unit.images or 0 for unit in grown) == 61


def test_the_same_names_elsewhere_are_other_units(tmp_path: Path) -> None:
    for name in "ab":
        write(str(tmp_path / name), {"1.jpg": jpeg(1), "list.txt": b"1.jpg\n"})
        os.utime(tmp_path / name / "1.jpg", ns=(1, 1))
    folders = [units_of(tmp_path / name)[0] for name in "ab"]
    assert folders[0].digest != folders[1].digest
    lists = [plan_source(source("url_list", f"{tmp_path}/{name}/list.txt"))[0] for name in "ab"]
    assert lists[0].digest != lists[1].digest


@pytest.mark.parametrize(("kind", "suffix"), [("webdataset", "tar"), ("parquet", "parquet")])
def test_archives_and_tables(tmp_path: Path, kind: str, suffix: str) -> None:
    data = tar([("1.jpg", b"1")]) if kind == "webdataset" else parquet({"image": [b"1"]})
    write(str(tmp_path), {f"{name}.{suffix}": data for name in "ab"})
    settings = source(kind, f"{tmp_path}/*.{suffix}")
    before = [unit.digest for unit in plan_source(settings)]
    assert len(set(before)) == 2
    assert [unit.digest for unit in plan_source(settings)] == before
    os.utime(tmp_path / f"b.{suffix}", ns=(1, 1))
    after = [unit.digest for unit in plan_source(settings)]
    assert after[0] == before[0] and after[1] != before[1]


def test_a_list_is_known_by_what_it_says(tmp_path: Path) -> None:
    """Whatever is added after it, and wherever absolute URLs stand."""
    lines = [f"http://h/{i}.jpg" for i in range(100)]
    paths = [tmp_path / name for name in ("a.txt", "deeper/b.txt")]
    paths[1].parent.mkdir()
    paths[0].write_text("\n".join(lines))
    paths[1].write_text("\ufeff" + "\r\n".join([*lines, *(f"http://h/{i}" for i in range(50))]))
    first, second = ([u.digest for u in plan_source(source("url_list", str(p)), 8)] for p in paths)
    assert first[:-1] == second[: len(first) - 1] and len(first) > 5
    other = source("url_list", str(paths[0]), allow_private=True)
    assert not set(first) & {unit.digest for unit in plan_source(other, 8)}
