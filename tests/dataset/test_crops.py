"""Batches of crops: which images, and which pixels, whoever makes them and wherever it goes on."""

from __future__ import annotations

import io
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from curate.dataset.crops import SUBSTITUTES, CropDataset, Crops, ahead_of, batch_bytes, loader
from curate.dataset.training_set import TrainingSet
from curate.dataset.views import PARAMETERS, Shape, shapes
from curate.errors import CurateError
from curate.pretraining.order import order_of, places_of
from curate.pretraining.plan import TrainingPlan, make_plan
from curate.settings import EncoderSettings, ImageSettings, TrainingSettings
from curate.settings.recipe import View
from curate.settings.recipes import RECIPES
from tests.dataset.test_training_set import write_set
from tests.imagery import encode, picture

LIMITS = ImageSettings()
SHAPES = [Shape(View(2, scale=(0.2, 1.0), blur_p=0.5), 32), Shape(View(3, side=0.5), 16)]


def plan_of(images: int, batch_size: int, epochs: int = 3, seed: int = 0) -> TrainingPlan:
    chosen = TrainingSettings(batch_size=batch_size, epochs=epochs, seed=seed)
    return make_plan(
        chosen,
        EncoderSettings(),
        images=images,
        open_images=0,
        workers=1,
        section="pretrain",
    )


plans = st.builds(
    lambda spare, batch, epochs, seed: plan_of(batch + spare, batch, epochs, seed),
    st.integers(0, 40),
    st.sampled_from([2, 4, 6, 12]),
    st.integers(1, 3),
    st.integers(0, 2**40),
)


# Which images


@given(plans, st.data())
@hypothesis_settings(deadline=None, max_examples=60)
def test_ranks_share_out_the_batch(plan: TrainingPlan, data: st.DataObject) -> None:
    """What the ranks have, one after another, is the batch that one process has."""
    worlds = [w for w in (1, 2, 3, 4, 6) if plan.batch_size % w == 0]
    world = data.draw(st.sampled_from(worlds))
    first = data.draw(st.integers(0, plan.steps))
    whole = list(places_of(plan, first, 0, 1))
    ranks = [list(places_of(plan, first, rank, world)) for rank in range(world)]
    assert {len(steps) for steps in ranks} == {len(whole)}
    for batch, *shares in zip(whole, *ranks, strict=True):
        assert {len(share) for share in shares} == {plan.batch_size // world}
        assert [place for share in shares for place in share] == batch


@given(plans)
@hypothesis_settings(deadline=None, max_examples=60)
def test_an_epoch_has_each_image_once(plan: TrainingPlan) -> None:
    """But for those that fill no batch."""
    batches = list(places_of(plan, 0, 0, 1))
    assert len(batches) == plan.steps == plan.epochs * (plan.images // plan.batch_size)
    assert all(len(batch) == plan.batch_size for batch in batches)
    seen = Counter(pair for batch in batches for pair in batch)
    assert set(seen.values()) == {1}
    assert all(0 <= place < plan.images for _, place in seen)
    per_epoch = Counter(epoch for epoch, _ in seen)
    whole = plan.images // plan.batch_size * plan.batch_size
    assert per_epoch == dict.fromkeys(range(plan.epochs), whole)
    epochs = [epoch for batch in batches for epoch, _ in batch]
    assert epochs == sorted(epochs)


@given(plans)
@hypothesis_settings(deadline=None, max_examples=30)
def test_going_on_at_any_step(plan: TrainingPlan) -> None:
    whole = list(places_of(plan, 0, 0, 1))
    for step in range(plan.steps + 1):
        assert list(places_of(plan, step, 0, 1)) == whole[step:]


def test_orders_differ_with_epoch_and_seed() -> None:
    plan = plan_of(500, 10)
    orders = [order_of(plan_of(500, 10, seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(500)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert (order_of(plan, 1) == orders[1]).all()
    # Whoever is left out of one epoch has its turn in another
    assert {place for epoch in range(20) for place in order_of(plan, epoch)[:250]} == set(
        range(500)
    )


def test_a_set_smaller_than_its_batch() -> None:
    """All of it is the batch, in whole shares for the workers."""
    chosen, encoder = TrainingSettings(epochs=2), EncoderSettings()
    plan = make_plan(chosen, encoder, images=23, open_images=0, workers=4, section="pretrain")
    assert (plan.batch_size, plan.steps_per_epoch) == (20, 1)
    for rank in range(4):
        assert [len(share) for share in places_of(plan, 0, rank, 4)] == [5, 5]


# Which pixels


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    """24 JPEGs and PNGs of different sizes, some of them upright by their EXIF only."""
    folder = str(tmp_path_factory.mktemp("data"))
    files = []
    for i in range(24):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 1 + i % 8
        kind = "PNG" if i % 5 == 0 else "JPEG"
        files.append(encode(picture(40 + 9 * i, 200 - 5 * i, seed=i), kind, exif=exif))
    write_set(folder, files, [f"class{i % 3}" if i % 4 else None for i in range(24)])
    return TrainingSet(folder)


def dataset_of(images: TrainingSet, seed: int = 0, noise: int = 5) -> CropDataset:
    return CropDataset(images, SHAPES, LIMITS, seed, noise)


def same(a: Crops, b: Crops) -> bool:
    tensors = [
        [*crops.pixels, *crops.parameters, crops.ids, crops.labels, crops.noise] for crops in (a, b)
    ]
    equal = all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(*tensors, strict=True))
    return equal and a.unreadable == b.unreadable


def joined(parts: list[Crops]) -> Crops:
    return Crops(
        [torch.cat(x) for x in zip(*(part.pixels for part in parts), strict=True)],
        [torch.cat(x) for x in zip(*(part.parameters for part in parts), strict=True)],
        torch.cat([part.ids for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.noise for part in parts]),
        [place for part in parts for place in part.unreadable],
    )


def test_what_a_batch_is(images: TrainingSet) -> None:
    wanted = [(0, place) for place in (3, 0, 23, 7)]
    crops = dataset_of(images).__getitems__(wanted)
    assert [tuple(x.shape) for x in crops.pixels] == [(4, 32, 32, 3)] * 2 + [(4, 16, 16, 3)] * 3
    assert {x.dtype for x in crops.pixels} == {torch.uint8}
    assert [tuple(x.shape) for x in crops.parameters] == [(4, PARAMETERS)] * 5
    assert crops.ids.tolist() == [3, 0, 23, 7] and crops.unreadable == []
    assert crops.labels.tolist() == [images.labels[place] for place in (3, 0, 23, 7)]
    assert [int(label) for label in crops.labels] == [0, -1, 2, 1]
    views = [view.numpy() for view in (*crops.pixels[:2], *crops.pixels[2:])]
    assert (views[0] != views[1]).any() and (views[2] != views[3]).any(), "each view its own"


def test_crops_are_of_their_own_image(tmp_path: Path) -> None:
    """Images of one colour each: a crop that came from another would show."""
    colours = np.random.default_rng(0).integers(0, 256, (9, 3), dtype=np.uint8)
    files = [encode(Image.new("RGB", (40, 30), tuple(map(int, c))), "PNG") for c in colours]
    write_set(str(tmp_path), files)
    order = [4, 8, 0, 1, 7, 2, 6, 3, 5]
    crops = dataset_of(TrainingSet(str(tmp_path))).__getitems__([(2, place) for place in order])
    for pixels in crops.pixels:
        assert (pixels.numpy() == colours[order][:, None, None]).all()


def test_a_view_depends_on_seed_epoch_and_image_alone(images: TrainingSet) -> None:
    """Not on its batch, its place in it, or what was made before."""
    dataset = dataset_of(images)
    places = [int(place) for place in np.random.default_rng(3).permutation(24)]
    whole = dataset.__getitems__([(1, place) for place in places])
    for cuts in ([24], [1] * 24, [5, 12, 7]):
        waiting = iter(places)
        parts = [
            dataset_of(images).__getitems__([(1, p) for p in islice(waiting, n)]) for n in cuts
        ]
        assert same(joined(parts), whole)
    again = dataset.__getitems__([(1, place) for place in sorted(places)])
    back = torch.tensor(places).argsort()
    assert all(torch.equal(x[back], y) for x, y in zip(whole.pixels, again.pixels, strict=True))
    assert torch.equal(whole.noise[back], again.noise)
    for other in (
        dataset.__getitems__([(2, place) for place in places]),
        dataset_of(images, seed=1).__getitems__([(1, place) for place in places]),
    ):
        assert all((x != y).any() for x, y in zip(whole.pixels, other.pixels, strict=True))
        assert not (whole.noise == other.noise).any()


def test_any_number_of_processes(images: TrainingSet) -> None:
    """The same bytes in the same order, from whichever process, and from any rank's share."""
    plan = plan_of(24, 8, epochs=2)
    dataset = dataset_of(images)
    here = list(loader(dataset, places_of(plan, 0, 0, 1), 0, pinned=False))
    assert len(here) == plan.steps == 6
    others = list(loader(dataset, places_of(plan, 0, 0, 1), 2, pinned=False))
    assert all(same(a, b) for a, b in zip(here, others, strict=True))
    ranks = [list(loader(dataset, places_of(plan, 2, rank, 2), 0, pinned=False)) for rank in (0, 1)]
    for batch, *shares in zip(here[2:], *ranks, strict=True):
        assert same(joined(shares), batch)


def test_noise_is_uniform(images: TrainingSet) -> None:
    crops = dataset_of(images, noise=400).__getitems__([(0, place) for place in range(24)])
    noise = crops.noise.numpy()
    assert noise.shape == (24, 400) and noise.dtype == np.float32
    assert noise.min() >= 0 and noise.max() < 1 and len(np.unique(noise)) > 9000
    assert abs(noise.mean() - 0.5) < 0.02 and abs(noise.std() - 12**-0.5) < 0.02
    assert dataset_of(images, noise=0).__getitems__([(0, 1)]).noise.shape == (1, 0)


# What cannot be read


def spoilt(folder: Path, bad: set[int], n: int = 12) -> TrainingSet:
    """Places in `bad` hold a JPEG that is cut short, an HTML page, or nothing."""
    whole = [encode(picture(60, 50, seed=i), "JPEG") for i in range(n)]
    damage = [whole[0][:-300], b"<html>404</html>", b""]
    files = [damage[i % 3] if i in bad else data for i, data in enumerate(whole)]
    write_set(str(folder), files, [f"class{i:02d}" for i in range(n)])
    return TrainingSet(str(folder))


def test_the_next_readable_image_takes_the_place(tmp_path: Path) -> None:
    images = spoilt(tmp_path, {0, 1, 5, 10, 11})
    dataset = dataset_of(images)
    crops = dataset.__getitems__([(0, place) for place in (5, 0, 3, 11, 10)])
    assert crops.unreadable == [5, 0, 11, 10], "each once, however many were tried for it"
    assert crops.ids.tolist() == [6, 2, 3, 2, 2]
    assert [images.classes[n] for n in crops.labels] == [
        *("class06", "class02", "class03", "class02", "class02")
    ]
    # The views are drawn for the place, so that two of one substitute's are not the same
    assert (crops.pixels[0][3] != crops.pixels[0][4]).any()
    alone = dataset.__getitems__([(0, 11)])
    assert torch.equal(alone.pixels[0][0], crops.pixels[0][3])
    assert torch.equal(alone.noise[0], crops.noise[3])


def test_refused_by_the_limits(tmp_path: Path) -> None:
    """An image is unreadable where the config refuses it, as in the selection."""
    write_set(
        str(tmp_path), [encode(picture(side, 40, seed=side), "PNG") for side in (20, 40, 60, 50)]
    )
    limits = ImageSettings(min_px=30, max_pixels=2200)
    dataset = CropDataset(TrainingSet(str(tmp_path)), SHAPES, limits, 0, 0)
    crops = dataset.__getitems__([(0, place) for place in range(4)])
    assert crops.unreadable == [0, 2] and crops.ids.tolist() == [1, 1, 3, 3]


def test_nothing_can_be_read(tmp_path: Path) -> None:
    images = spoilt(tmp_path, set(range(12)))
    with pytest.raises(
        CurateError, match=r"image 7 and all the next ones .* cannot be decoded"
    ) as error:
        dataset_of(images).__getitems__([(0, 7)])
    assert str(tmp_path) in str(error.value)
    assert SUBSTITUTES > 12, "each image was tried once at most"


# Large images


def test_large_jpegs_are_decoded_smaller(tmp_path: Path) -> None:
    """Against the same crops from the whole image, stored without loss: nobody could tell. The
    grain of the picture is what would show a wrong place or size."""
    coarse = picture(96, 72, seed=3)
    large = coarse.resize((960, 720), Image.Resampling.BICUBIC)
    jpeg = encode(large, "JPEG", quality=95)
    exact = encode(Image.open(io.BytesIO(jpeg)), "PNG", compress_level=1)
    shapes = [Shape(View(2, scale=(0.3, 1.0)), 64), Shape(View(2, scale=(0.3, 0.6)), 32)]
    crops = []
    for name, data in (("jpeg", jpeg), ("png", exact)):
        write_set(str(tmp_path / name), [data])
        dataset = CropDataset(TrainingSet(str(tmp_path / name)), shapes, LIMITS, 0, 3)
        crops.append(dataset.__getitems__([(epoch, 0) for epoch in range(6)]))
    reduced, whole = crops
    assert all(torch.equal(a, b) for a, b in zip(reduced.parameters, whole.parameters, strict=True))
    assert torch.equal(reduced.noise, whole.noise)
    for a, b in zip(reduced.pixels, whole.pixels, strict=True):
        difference = (a.double() - b.double()).abs().mean((1, 2, 3))
        assert difference.max() < 6, "of 255"
        # What a crop one tenth beside it would make of it
        shifted = (a.double() - torch.roll(b.double(), a.shape[1] // 10, 2)).abs().mean((1, 2, 3))
        assert (shifted > 3 * difference).all()
    assert (reduced.pixels[0] != whole.pixels[0]).any(), "it was not decoded whole"


def test_small_crops_of_large_images_keep_their_pixels(tmp_path: Path) -> None:
    """A crop of few pixels is not cut from an image that was reduced: it would be enlarged."""
    jpeg = encode(picture(800, 600, seed=4), "JPEG", quality=95)
    exact = encode(Image.open(io.BytesIO(jpeg)), "PNG", compress_level=1)
    shapes = [Shape(View(2, scale=(0.006, 0.01), flip_p=0), 64)]
    crops = []
    for name, data in (("jpeg", jpeg), ("png", exact)):
        write_set(str(tmp_path / name), [data])
        dataset = CropDataset(TrainingSet(str(tmp_path / name)), shapes, LIMITS, 0, 0)
        crops.append(dataset.__getitems__([(epoch, 0) for epoch in range(6)]))
    for a, b in zip(crops[0].pixels, crops[1].pixels, strict=True):
        assert (a.double() - b.double()).abs().mean() < 1


@pytest.mark.parametrize(
    ("workers", "size", "room", "expected"),
    [
        (15, 1 << 20, float("inf"), (15, 4)),
        (15, 154 << 20, 8 << 30, (15, 3)),
        (15, 154 << 20, 2 << 30, (13, 1)),
        (15, 154 << 20, 64 << 20, (1, 1)),  # a container's
        (0, 154 << 20, 64 << 20, (0, 1)),
    ],
)
def test_batches_ahead_fit_into_shared_memory(
    workers: int, size: int, room: float, expected: tuple[int, int]
) -> None:
    found = ahead_of(workers, size, room)
    assert found == expected
    assert found[0] * found[1] * size <= room or found[0] <= 1


def test_a_batchs_bytes_are_its_pixels() -> None:
    views = shapes(RECIPES["dino"]["paper"].views, 224, 1)
    pixels = 2 * 224**2 + 8 * views[-1].px ** 2
    assert batch_bytes(views, 10, ImageSettings()) == 10 * 3 * pixels
    assert batch_bytes(views, 10, ImageSettings(channels=1, bits=16)) == 10 * 2 * pixels
