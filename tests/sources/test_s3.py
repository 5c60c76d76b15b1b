"""Every kind of source, and what a run writes, on real S3 calls against a local server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from curate import listing, storage
from curate.embedding import encoders
from curate.errors import CurateError
from curate.runfiles import plan
from curate.runfiles.files import RunFiles
from curate.settings import EncoderSettings, RunSettings
from curate.settings.load import parse
from tests.imagery import jpeg, tar
from tests.sources.reading import error_of, parquet, read, read_unit, write

pytestmark = pytest.mark.slow

IMAGES = {f"{i}.jpg": jpeg(i) for i in range(8)}


def run_settings(bucket: str) -> RunSettings:
    write(bucket, {f"folder/class/{name}": data for name, data in IMAGES.items()})
    members = [*IMAGES.items(), *((f"{i}.cls", b"class") for i in range(8))]
    write(bucket, {"tars/a.tar": tar(members)})
    write(bucket, {"tables/t.parquet": parquet({"image": list(IMAGES.values())}, 3)})
    write(bucket, {"list.txt": b"\n".join(f"folder/class/{n}".encode() for n in IMAGES)})
    sources = [
        ("image_folder", "folder"),
        ("webdataset", "tars/*.tar"),
        ("parquet", "tables/*.parquet"),
        ("url_list", "list.txt"),
    ]
    document = {
        "target": {"kind": "image_folder", "path": f"{bucket}/folder"},
        "open": [
            {"name": kind, "kind": kind, "path": f"{bucket}/{path}"} for kind, path in sources
        ],
        "output": f"{bucket}/run",
    }
    return parse(document, "test")


def test_plan_and_read_every_kind(bucket: str) -> None:
    settings = run_settings(bucket)
    planned = plan.make(settings, RunFiles(settings.output).plan(0))
    plan.write(planned)
    assert plan.read(planned.files).table.equals(planned.table)
    sources = plan.by_name(settings)
    units = planned.units()
    for unit in units[1:]:
        items = list(read_unit(sources[unit.set, unit.source], unit.unit))
        assert [item.data for item in items] == list(IMAGES.values()), unit.source
        for item in items:
            assert item.uri.startswith(bucket) and item.error is None
            if item.offset is not None and item.size is not None:
                assert storage.read_range(item.uri, item.offset, item.size) == item.data
    assert [unit.source for unit in units[1:]] == [source.name for source in settings.open]


def test_storage(bucket: str) -> None:
    uri = f"{bucket}/a/b/file.bin"
    assert not storage.exists(uri) and storage.names_in(f"{bucket}/a/b") == set()
    storage.write_bytes(uri, b"one")
    assert storage.names_in(f"{bucket}/a/b") == {"file.bin"}
    storage.write_bytes(uri, b"two two")
    assert storage.read_bytes(uri) == b"two two" and storage.read_range(uri, 4, 3) == b"two"
    assert storage.read_range(uri, 4, 99) == b"two" and storage.read_range(uri, 7, 1) == b""
    with storage.open_seekable(uri) as file:
        file.seek(-3, 2)
        assert file.read() == b"two"
    assert [(file.uri, file.size) for file in listing.find(bucket)] == [(uri, 7)]
    assert [file.uri for file in listing.expand([f"{bucket}/*/b/*.bin"])] == [uri]
    assert [file.uri for file in listing.expand([f"{bucket}/{{a,a}}/b/fil{{e,e}}.bin"])] == [uri]
    with pytest.raises(CurateError, match=r"/z/b/file\.bin: matches no file"):
        listing.expand([f"{bucket}/{{a,z}}/b/file.bin"])
    for data in (b"", b"0123456789"):
        storage.write_bytes(uri, data)
        assert storage.read_file(uri, 10) == data
    assert not storage.create_bytes(uri, b"other") and storage.read_bytes(uri) == b"0123456789"
    new = f"{bucket}/a/b/new"
    assert storage.create_bytes(new, b"first") and not storage.create_bytes(new, b"second")
    first = listing.stamp_of(new)
    (found,) = listing.expand([f"{bucket}/a/b/n*"])
    assert (found.size, found.stamp) == first and len(first[1]) == 32
    with storage.open_whole(new) as stream:
        stream.write(b"later")
        assert listing.stamp_of(new) == first
    assert storage.read_bytes(new) == b"later" and listing.stamp_of(new) != first
    with pytest.raises(storage.UnfitFile, match="more than 9 bytes is over max_bytes 9"):
        storage.read_file(uri, 9)
    storage.remove_tree(f"{bucket}/a")
    assert not storage.exists(uri)
    with pytest.raises(FileNotFoundError):
        listing.stamp_of(uri)


def test_what_is_not_there(bucket: str) -> None:
    write(bucket, {"list.txt": b"gone.jpg"})
    (item,) = read("url_list", f"{bucket}/list.txt")
    assert item.error == "no such file"
    assert "matches no file" in error_of("webdataset", f"{bucket}/*.tar")
    assert "no such folder" in error_of("image_folder", f"{bucket}/none")
    assert "ray::" not in error_of("image_folder", "s3://no-such-bucket-anywhere/none")
    with pytest.raises(CurateError, match="cannot be written"):
        storage.write_bytes("s3://no-such-bucket-anywhere/file", b"data")


def test_whole_run_and_training_on_s3(bucket: str, tmp_path: Path) -> None:
    """Sources, embeddings, manifest, training set, checkpoints and encoder: nothing is local."""
    document = run_settings(bucket).model_dump(mode="json", exclude_none=True)
    document["encoder"] = {"backbone": "resnet18", "image_px": 32}
    document["coreset"] = {"clusters": 2, "tau": None, "budget": 6}
    document["pretrain"] = {"preset": "simcore", "epochs": 2, "batch_size": 4}
    document["pretrain"]["resources"] = {"workers": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [sys.executable, "-m", "curate.cli", "run", str(tmp_path / "run.yaml")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"encoder: {bucket}/run/pretrain" in done.stdout
    names = {file.uri.removeprefix(f"{bucket}/run/pretrain/") for file in listing.find(bucket)}
    assert {"encoder.safetensors", "encoder.json", "metrics.jsonl", "data/index.json"} <= names
    assert {name for name in names if name.startswith("checkpoints/")} == {
        "checkpoints/step-00000006.pt"
    }
    assert any(name.startswith("tensorboard/events") for name in names)
    assert not any(name.startswith(".ray") for name in names)
    settings = EncoderSettings(
        backbone="resnet18", image_px=32, checkpoint=f"{bucket}/run/pretrain"
    )
    assert encoders.build(settings).feature_dim == 512
