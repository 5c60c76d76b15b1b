"""Features: the same bits by one thread or several, by one task or many."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from curate.dataset.training_set import TrainingSet
from curate.embedding import encoders
from curate.evaluate.features import BATCH, features_of, features_of_part, parts_of
from curate.evaluate.loading import loaded
from tests.evaluate.labelled import UNREADABLE, bench, images_of, write_set

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("images", "at_once"),
    [(1, 8), (255, 8), (512, 8), (513, 8), (5000, 1), (5000, 4), (99_999, 64)],
)
def test_parts_are_whole_batches_that_hold_each_image_once(images: int, at_once: int) -> None:
    parts = parts_of(images, at_once)
    assert [row for part in parts for row in range(*part)] == list(range(images))
    assert all(first % BATCH == 0 for first, _ in parts)
    assert len(parts) <= at_once
    sizes = [last - first for first, last in parts]
    assert max(sizes) <= max(2 * BATCH, images / at_once + BATCH), "none has much more than others"


def test_features_do_not_depend_on_threads_and_tasks(tmp_path: Path) -> None:
    small = bench(tmp_path, 1, 1)
    images = images_of(180, 0)  # 540: two tasks, and a last batch of its own size
    images[3] = (images[3][0], images[3][1], UNREADABLE)
    folder = write_set(tmp_path / "images", images)
    encoder = encoders.build(small.encoder)
    module = encoder.module.to(memory_format=torch.channels_last)
    whole = [
        features_of(
            module,
            encoder.preprocessing,
            small.limits,
            TrainingSet(folder),
            np.arange(540),
            CPU,
            decoders=decoders,
        )
        for decoders in (0, 3)
    ]
    parts = [features_of_part(small, folder, part) for part in parts_of(540, 2)]
    assert len(parts) == 2
    assert whole[0].tobytes() == whole[1].tobytes() == np.concatenate(parts).tobytes()
    assert np.linalg.norm(whole[0], axis=1) == pytest.approx(np.ones(540), abs=1e-5)
    assert len(np.unique(whole[0], axis=0)) == 540, "each image has its own"


def test_loading_is_in_order_and_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=20)

    def load(entry: int) -> int:
        together.wait()  # breaks where fewer than three load at once
        return 10 * entry

    assert list(loaded(load, [[0, 1], [2], [3, 4, 5]], threads=3)) == [[0, 10], [20], [30, 40, 50]]


def test_without_threads_a_batch_is_loaded_when_it_is_asked_for() -> None:
    seen: list[tuple[int, int]] = []

    def load(entry: int) -> int:
        seen.append((entry, threading.get_ident()))
        return entry

    batches = loaded(load, [[0, 1], [2]], threads=0)
    assert next(batches) == [0, 1]
    assert seen == [(0, threading.get_ident()), (1, threading.get_ident())]
    assert list(batches) == [[2]]


def test_what_cannot_be_loaded_is_told() -> None:
    def load(entry: int) -> float:
        return 1 / entry

    for threads in (0, 2):
        batches = loaded(load, [[1], [0], [2]], threads)
        assert next(batches) == [1]
        with pytest.raises(ZeroDivisionError):
            next(batches)
