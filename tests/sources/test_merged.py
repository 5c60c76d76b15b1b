"""Several sources in one plan: the frozen list that decides plan order."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate.errors import CurateError
from curate.runfiles import plan
from curate.runfiles.files import RunFiles
from curate.runfiles.plan import Plan
from curate.settings import RunSettings
from curate.settings.load import parse
from tests.imagery import jpeg, tar
from tests.sources.reading import parquet, read_unit, write


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    """Four sources which all have an image of key `1`."""
    write(str(tmp_path), {f"target/{i}.jpg": jpeg(100 + i) for i in range(3)})
    write(str(tmp_path), {f"folder/1/{i}.jpg": jpeg(i) for i in range(5)})
    write(str(tmp_path), {"a.tar": tar([(f"{i}.jpg", jpeg(i)) for i in range(5)])})
    columns = {"image": [jpeg(i) for i in range(5)], "id": list(range(5))}
    write(str(tmp_path), {"t.parquet": parquet(columns, 2)})
    write(str(tmp_path), {"list.csv": b"url,id\nfolder/1/0.jpg,0\nfolder/1/1.jpg,1\n"})
    document = {
        "target": {"kind": "image_folder", "path": f"{tmp_path}/target"},
        "open": [
            {"name": "z", "kind": "webdataset", "path": f"{tmp_path}/a.tar", "limit": 4},
            {
                "name": "a",
                "kind": "parquet",
                "path": f"{tmp_path}/t.parquet",
                "key_column": "id",
                "limit": 3,
            },
            {"name": "m", "kind": "url_list", "path": f"{tmp_path}/list.csv", "key_column": "id"},
            {"name": "f", "kind": "image_folder", "path": f"{tmp_path}/folder", "limit": 2},
        ],
        "embed": {"unit_images": 2},
        "output": f"{tmp_path}/run",
    }
    return parse(document, "test")


def made(settings: RunSettings) -> Plan:
    return plan.make(settings, RunFiles(settings.output).plan(0))


def test_merged_sources_keep_the_order_of_the_config(settings: RunSettings) -> None:
    sources = plan.by_name(settings)
    keys = [
        (unit.source, item.key)
        for unit in made(settings).units()
        for item in read_unit(sources[unit.set, unit.source], unit.unit)
    ]
    assert keys == [
        *(("target", f"{i}.jpg") for i in range(3)),
        *(("z", str(i)) for i in range(4)),
        *(("a", str(i)) for i in range(3)),
        *(("m", str(i)) for i in range(2)),
        *(("f", f"1/{i}.jpg") for i in range(2)),
    ]


def test_the_plan_survives_its_file(settings: RunSettings) -> None:
    """Units read back find the same images; a plan made anew is the same."""
    planned = made(settings)
    plan.write(planned)
    again = plan.read(planned.files)
    assert again.table.equals(planned.table)
    sources = plan.by_name(settings)
    for before, after in zip(planned.units(), again.units(), strict=True):
        source = sources[before.set, before.source]
        assert list(read_unit(source, before.unit)) == list(read_unit(source, after.unit))
    anew = plan.make(settings, RunFiles(settings.output).plan(1))
    assert anew.table.equals(planned.table)
    assert len(set(planned.digests.to_pylist())) == len(planned)


def test_one_bad_source_is_named(settings: RunSettings) -> None:
    gone = settings.open[2].model_copy(update={"path": ["nowhere/*.csv"]})
    broken = settings.model_copy(update={"open": [*settings.open[:2], gone]})
    with pytest.raises(CurateError, match=r"^source m: nowhere/\*\.csv: matches no file"):
        made(broken)
