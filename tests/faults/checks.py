"""What must hold of one damaged file; `bounded` runs these, a seed a file."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from curate.images import EncodedImage, Refused
from curate.settings import ImageSettings, SourceSettings
from curate.sources import Item, Unit, read_unit
from tests.faults import mutations
from tests.sources.reading import source

LIMITS = ImageSettings(max_pixels=4_000_000)  # a picture of these fits the memory many times


def image(seed: int) -> str:
    """A picture of the stated size, or one short line that refuses it."""
    rng = random.Random(seed)
    _, data = mutations.mutated(rng, mutations.images())
    target_px = rng.choice([None, 8])
    try:
        opened = EncodedImage(data, LIMITS)
        size, rgb = opened.size, opened.decode(target_px)
    except Refused as refused:
        reason = str(refused)
        assert reason and "\n" not in reason and len(reason) < 250, reason
        assert not isinstance(refused.__cause__, MemoryError), reason
        return "refused"
    assert rgb.mode == "RGB" and min(size) >= LIMITS.min_px
    assert size[0] * size[1] <= LIMITS.max_pixels
    if target_px is None:
        assert rgb.size == size, f"{rgb.size} of {size}"
    assert sorted(size) == sorted((opened.width, opened.height))
    return "decoded"


def tar(seed: int) -> str:
    stop = random.Random(seed).choice([None, 3])
    unit = partial(Unit, digest="", stop=stop, images=stop)
    return _archive("webdataset", unit, mutations.mutated(random.Random(seed), mutations.tars())[1])


def table(seed: int) -> str:
    start, stop = sorted(random.Random(seed).sample(range(mutations.TABLE_ROWS + 1), 2))
    unit = partial(Unit, digest="", start=start, stop=stop, images=stop - start)
    return _archive("parquet", unit, mutations.mutated(random.Random(seed), mutations.tables())[1])


def _archive(kind: str, unit: Callable[[str], Unit], data: bytes) -> str:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        items = accounted(source(kind, file.name), unit(file.name))
    return "damaged" if any(item.error for item in items) else "read"


def accounted(settings: SourceSettings, unit: Unit) -> list[Item]:
    """What is read of a unit whose file has been damaged since it was planned: each image of it, or
    why there is none."""
    items = list(read_unit(settings, unit, LIMITS.max_bytes))
    assert unit.images is None or len(items) == unit.images, f"{len(items)} of {unit.images}"
    for item in items:
        assert (item.data is None) != (item.error is None), item
        assert item.error is None or ("\n" not in item.error and len(item.error) < 400), item
        f"{item.key}{item.uri}{item.label}{item.error}".encode()
    return items


def tar_before_damage(seed: int) -> str:
    """Whatever lies before the first spoilt byte is given."""
    whole, damaged = mutations.mutated(random.Random(seed), mutations.tars())
    pairs = enumerate(zip(whole, damaged, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(whole), len(damaged)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "set.tar")
        settings = source("webdataset", str(path))
        images = []
        for data in (whole, damaged):
            path.write_bytes(data)
            items = accounted(settings, Unit(str(path), digest=""))
            images.append({(i.offset or 0, i.data) for i in items if i.data is not None})
    expected = {(offset, data) for offset, data in images[0] if offset + len(data) <= same}
    assert expected <= images[1], f"{len(expected - images[1])} before byte {same} are lost"
    return "kept" if expected else "nothing to keep"
