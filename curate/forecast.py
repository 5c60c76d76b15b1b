"""`curate plan`: what a run would read, whether it can be read, and about what it takes. Embeds
nothing, and leaves nothing behind.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow.compute as pc
import ray

from curate import storage
from curate.cluster import over_tasks
from curate.embedding import encoders
from curate.embedding.embedder import Embedder
from curate.embedding.encoders import Encoder
from curate.embedding.stage import GUESSED_BYTES, device_of
from curate.images import EncodedImage, ImageSettings, Preprocessing, Refused
from curate.runfiles import plan
from curate.runfiles.files import PlanFiles
from curate.runfiles.plan import Plan, PlannedUnit, SetName, by_name
from curate.settings import RunSettings, SourceSettings
from curate.sources import Changed, read_unit

UNITS_SAMPLED = 4  # of each source, evenly through its plan
IMAGES_SAMPLED = 16  # of each of these
ABOUT_AN_IMAGE = 400  # bytes of a shard's row beside its embedding: key, uri, sha256 …


@dataclass(frozen=True)
class Sample:
    """Images of one source, read and decoded."""

    images: int
    bytes: int
    unit_bytes: int  # of the units that they are from
    unit_images: int  # in these
    seconds: float  # of one core, reading included
    rejects: list[str]  # key and reason
    trouble: str | None = None  # why a unit could not be read now


@dataclass(frozen=True)
class SourceForecast:
    set: SetName
    name: str
    units: int
    images: int
    counted: bool  # whether images is what the plan says, and no estimate by the sample
    bytes: int
    sample: Sample


@dataclass(frozen=True)
class Forecast:
    """images_per_s: by one core's reading times the cluster's; by the encoder's on this machine's
    CPU times the actors', None where it would be on GPUs."""

    sources: list[SourceForecast]
    cores: int
    reading_per_s: float
    embedding_per_s: float | None
    disk_bytes: int

    def table(self) -> str:
        head = f"{'source':<24}{'units':>9}{'images':>14}{'GB':>10}{'sampled':>9}{'rejected':>9}"
        lines = [head]
        for one in self.sources:
            name = one.name if one.set == "open" else f"{one.name} ({one.set})"
            about = "" if one.counted else "~"
            seen = one.sample.images + len(one.sample.rejects)
            lines.append(
                f"{name:<24}{one.units:>9,}{f'{about}{one.images:,}':>14}{one.bytes / 1e9:>10.2f}"
                f"{seen:>9}{len(one.sample.rejects):>9}"
            )
        for one in self.sources:
            if one.sample.trouble:
                lines.append(f"{one.name}: not readable now: {one.sample.trouble}")
            lines += [f"{one.name}: {reject}" for reject in one.sample.rejects[:3]]
        images = sum(one.images for one in self.sources)
        reading = images / self.reading_per_s / 3600 if self.reading_per_s else float("nan")
        lines.append(
            f"\n{images:,} images; reading and decoding, {self.reading_per_s:,.0f} images/s on "
            f"{self.cores} cores: {reading:.2f} h"
        )
        if self.embedding_per_s is None:
            lines.append("embedding: on GPUs, whose speed is not known before they are tried")
        else:
            lines.append(
                f"embedding, {self.embedding_per_s:,.0f} images/s on the same cores: "
                f"{images / self.embedding_per_s / 3600:.2f} h more"
            )
        lines.append(f"embeddings on disk: {self.disk_bytes / 1e9:.2f} GB")
        return "\n".join(lines)


def forecast(settings: RunSettings) -> Forecast:
    """Raises CurateError as a run would, for what it would refuse before it reads an image."""
    encoder = encoders.build(settings.encoder)
    device = device_of(settings)
    scratch = PlanFiles(storage.join(settings.output, f".plan-{uuid.uuid4().hex[:8]}"))
    absent = list(_absent(settings.output))
    try:
        made = plan.make(settings, scratch)
        found = list(_sources(settings, made, encoder.preprocessing))
    finally:
        storage.remove_tree(scratch.folder)
        for folder in absent:
            with suppress(OSError):
                os.rmdir(folder)
    images = sum(one.images for one in found)
    sampled = sum(one.sample.images + len(one.sample.rejects) for one in found)
    seconds = sum(one.sample.seconds for one in found)
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    return Forecast(
        sources=found,
        cores=cores,
        reading_per_s=cores * sampled / seconds if seconds else 0.0,
        embedding_per_s=cores * _encoder_rate(encoder) if device == "cpu" else None,
        disk_bytes=images * (2 * encoder.feature_dim + ABOUT_AN_IMAGE),
    )


def _absent(output: str) -> Iterator[str]:
    """The local folders that are not there yet, the innermost first."""
    if storage.is_local(output):
        folder = storage.filesystem(output)[1]
        while not os.path.exists(folder):
            yield folder
            folder = os.path.dirname(folder)


def _sources(
    settings: RunSettings, made: Plan, preprocessing: Preprocessing
) -> Iterator[SourceForecast]:
    for (set_name, name), source in by_name(settings).items():
        own = pc.and_(pc.equal(made.table["set"], set_name), pc.equal(made.table["source"], name))
        rows = pc.indices_nonzero(own)
        table = made.table.take(rows)
        chosen = np.unique(np.linspace(0, len(rows) - 1, UNITS_SAMPLED).astype(int))
        units = made.units(rows.take(chosen))
        parts = over_tasks(_sample, units, 1, source, settings.images, preprocessing)
        sample = Sample(
            sum(part.images for part in parts),
            sum(part.bytes for part in parts),
            sum(part.unit_bytes for part in parts),
            sum(part.unit_images for part in parts),
            sum(part.seconds for part in parts),
            [reject for part in parts for reject in part.rejects],
            next((part.trouble for part in parts if part.trouble), None),
        )
        known, size = table["images"], int(pc.sum(table["size"]).as_py() or 0)
        each = sample.bytes / sample.images if sample.images else GUESSED_BYTES
        whole = sample.unit_bytes / sample.unit_images if sample.unit_images else GUESSED_BYTES
        counted = known.null_count == 0
        images = int(pc.sum(known).as_py() or 0) if counted else round(size / whole)
        yield SourceForecast(
            set_name, name, len(rows), images, counted, size or round(images * each), sample
        )


@ray.remote
def _sample(
    units: list[PlannedUnit],
    source: SourceSettings,
    limits: ImageSettings,
    preprocessing: Preprocessing,
) -> Sample:
    [planned] = units
    started = time.monotonic()
    images = size = rest = 0
    rejects: list[str] = []
    trouble = None
    try:
        items = read_unit(source, planned.unit, limits.max_bytes)
        for item in islice(items, IMAGES_SAMPLED):
            try:
                if item.data is None:
                    raise Refused(item.error or "no bytes")
                preprocessing.pixels(EncodedImage(item.data, limits))
                images, size = images + 1, size + len(item.data)
            except Refused as reason:
                rejects.append(f"{item.key}: {reason}")
        seconds = time.monotonic() - started
        if planned.unit.images is None:
            rest = sum(1 for _ in items)
    except (storage.Unavailable, Changed) as error:
        seconds, trouble = time.monotonic() - started, str(error)
    counted = planned.unit.images or images + len(rejects) + rest
    return Sample(images, size, planned.unit.size, counted, seconds, rejects, trouble)


def _encoder_rate(encoder: Encoder) -> float:
    """Images/s of one core."""
    import torch

    seen = encoder.preprocessing
    pixels = np.zeros((8, *seen.shape), seen.dtype)
    embedder = Embedder(encoder, "cpu", len(pixels))
    embedder(pixels[:1])
    started = time.monotonic()
    embedder(pixels)
    return len(pixels) / (time.monotonic() - started) / torch.get_num_threads()
