"""Random views: torchvision's crops, inside the image, and changes as often as asked."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F
from torchvision.transforms.functional import InterpolationMode

from curate.dataset.views import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GREY,
    HUE,
    ORDER,
    PARAMETERS,
    ROTATION,
    SATURATION,
    SOLARIZE,
    Box,
    Shape,
    crop,
    draw_box,
    draw_parameters,
    least_px,
    scaled,
    shapes,
)
from curate.settings.recipe import View
from curate.settings.recipes import RECIPES
from tests.imagery import picture

seeds = st.integers(0, 2**32)
sides = st.one_of(st.integers(1, 40), st.integers(1, 5000))
scales = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda s: (min(s), max(s)))


def inside(box: Box, width: int, height: int) -> bool:
    return (
        box.left >= 0
        and box.top >= 0
        and box.width >= 1
        and box.height >= 1
        and box.left + box.width <= width
        and box.top + box.height <= height
    )


# Boxes


@given(seeds, sides, sides, scales)
@settings(deadline=None)
def test_boxes_are_inside_the_image(
    seed: int, width: int, height: int, scale: tuple[float, float]
) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(5):
        assert inside(draw_box(rng, View(1, scale=scale), width, height), width, height)


def statistics(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Means and deviations of area, log aspect and centre of (N, 4) left, top, width, height."""
    left, top, w, h = boxes.T.astype(float)
    rows = np.stack(
        [
            w * h / (width * height),
            np.log(w / h),
            (left + w / 2) / width,
            (top + h / 2) / height,
            (w == width) | (h == height),
        ]
    )
    return np.concatenate([rows.mean(1), rows.std(1)])


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (0.05, 0.14)])
@pytest.mark.parametrize(("width", "height"), [(200, 200), (300, 200), (100, 400)])
def test_boxes_are_distributed_as_torchvision_s(
    width: int, height: int, scale: tuple[float, float]
) -> None:
    """Moments of 4,000 each: standard errors are under 0.01."""
    rng = np.random.default_rng(0)
    n = 4000
    ours = np.array([draw_box(rng, View(1, scale=scale), width, height)[:4] for _ in range(n)])
    image = torch.empty(3, 1, 1).expand(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = [
            RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(n)
        ]
    theirs = np.array([(left, top, w, h) for top, left, h, w in theirs])
    expected = statistics(theirs, width, height)
    np.testing.assert_allclose(statistics(ours, width, height), expected, atol=0.025)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (1000, 20, (486, 0, 27, 20)),  # 4:3
        (20, 1000, (0, 486, 20, 27)),  # 3:4
        (500, 1, (249, 0, 1, 1)),
        (1, 500, (0, 249, 1, 1)),
    ],
)
def test_a_centre_crop_where_no_try_fits(
    width: int, height: int, box: tuple[int, int, int, int]
) -> None:
    """As torchvision's, which asks for what no strip has: four fifths of its area at 4:3."""
    view = View(1, scale=(0.8, 1.0), flip_p=0)
    got = draw_box(np.random.default_rng(0), view, width, height)
    assert got == Box(*box, False)
    image = torch.empty(3, height, width)
    top, left, h, w = RandomResizedCrop.get_params(image, [0.8, 1.0], [3 / 4, 4 / 3])
    assert (left, top, w, h) == box


@pytest.mark.parametrize("flip_p", [0.0, 0.3, 1.0])
def test_share_of_flips(flip_p: float) -> None:
    rng = np.random.default_rng(0)
    flips = [draw_box(rng, View(1, flip_p=flip_p), 40, 30).flip for _ in range(2000)]
    assert np.mean(flips) == pytest.approx(flip_p, abs=0.04)
    assert flip_p == 0.3 or len(set(flips)) == 1


def test_the_same_seed_draws_the_same() -> None:
    view = RECIPES["byol"]["paper"].views[1]
    drawn = []
    for seed in (5, 5, 6):
        rng = np.random.default_rng(seed)
        boxes = [draw_box(rng, view, 300, 200) for _ in range(10)]
        drawn.append((boxes, [draw_parameters(rng, view).tolist() for _ in range(10)]))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0] and drawn[0][1] != drawn[2][1]


# Parameters

N = 4000
COLUMNS = (BRIGHTNESS, CONTRAST, SATURATION, HUE)


def draw(view: View, seed: int = 0, n: int = N) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([draw_parameters(rng, view) for _ in range(n)])


def test_parameters_are_uniform_over_their_ranges() -> None:
    """A strength over 1 would make a factor negative, which it never is."""
    view = View(1, jitter=(0.4, 0.8, 1.5, 0.2), jitter_p=1, blur_p=1, blur_sigma=(0.5, 3.0))
    rows = draw(view)
    assert rows.shape == (N, PARAMETERS) and rows.dtype == np.float32
    ranges = {
        BRIGHTNESS: (0.6, 1.4),
        CONTRAST: (0.2, 1.8),
        SATURATION: (0.0, 2.5),
        HUE: (-0.2, 0.2),
        BLUR: (0.5, 3.0),
    }
    for column, (low, high) in ranges.items():
        shares = (rows[:, column] - low) / (high - low)
        assert shares.min() >= -1e-6 and shares.max() <= 1 + 1e-6
        counts = np.histogram(shares, 5, (-1e-5, 1 + 1e-5))[0] / N
        np.testing.assert_allclose(counts, 1 / 5, atol=0.03)


def test_orders_are_all_permutations_alike() -> None:
    orders, counts = np.unique(draw(View(1))[:, ORDER], axis=0, return_counts=True)
    assert len(orders) == 24
    assert (np.sort(orders, 1) == np.arange(4)).all()
    np.testing.assert_allclose(counts / N, 1 / 24, atol=0.015)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_each_change_comes_as_often_as_asked(share: float) -> None:
    """And on its own: pairs of changes meet as often as chance has it."""
    rows = draw(View(1, jitter_p=share, grey_p=share, blur_p=share, solarize_p=share))
    jittered = rows[:, BRIGHTNESS] != 1
    for column, identity in ((CONTRAST, 1), (SATURATION, 1), (HUE, 0)):
        assert ((rows[:, column] != identity) == jittered).mean() > 0.999
    changes = np.stack([jittered, rows[:, GREY], rows[:, BLUR] > 0, rows[:, SOLARIZE]]).astype(bool)
    np.testing.assert_allclose(changes.mean(1), share, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(changes), np.eye(4), atol=0.06)
    assert np.isin(rows[:, [GREY, SOLARIZE]], [0, 1]).all()


def test_what_is_drawn_for_one_change_tells_nothing_of_another() -> None:
    """Factors, shift and sigma have no correlation."""
    rows = draw(View(1, jitter_p=1, grey_p=0.5, blur_p=1, solarize_p=0.5))
    columns = rows[:, [*COLUMNS, GREY, BLUR, SOLARIZE]]
    np.testing.assert_allclose(np.corrcoef(columns.T), np.eye(7), atol=0.06)


def test_probabilities_of_0_and_1() -> None:
    never = draw(View(1, jitter_p=0, grey_p=0, blur_p=0, solarize_p=0), n=300)
    assert (never[:, [BRIGHTNESS, CONTRAST, SATURATION]] == 1).all()
    assert not never[:, [HUE, GREY, BLUR, SOLARIZE]].any()
    always = draw(View(1, jitter_p=1, grey_p=1, blur_p=1, solarize_p=1), n=300)
    assert (always[:, [GREY, SOLARIZE]] == 1).all()
    assert (always[:, BLUR] >= 0.1).all()
    assert (always[:, BRIGHTNESS] != 1).mean() > 0.99


@pytest.mark.parametrize("seed", range(5))
def test_as_many_numbers_are_drawn_whatever_comes_of_them(seed: int) -> None:
    """What follows is the same, whether the view is blurred or not."""
    after = []
    for share in (0.0, 0.5, 1.0):
        rng = np.random.default_rng(seed)
        draw_parameters(rng, View(1, jitter_p=share, grey_p=share, blur_p=share, solarize_p=share))
        after.append(rng.random())
    assert after[0] == after[1] == after[2]


# Crops


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize(
    ("box", "px"),
    [
        ((0, 0, 200, 150), 32),
        ((13, 7, 120, 90), 48),
        ((190, 140, 10, 10), 64),
        ((5, 5, 1, 1), 8),
        ((20, 30, 64, 64), 64),
    ],
)
def test_crops_are_torchvision_s(
    box: tuple[int, int, int, int], px: int, bicubic: bool, flip: bool
) -> None:
    image = picture(200, 150)
    left, top, width, height = box
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    expected = F.resized_crop(image, top, left, height, width, [px, px], mode, antialias=True)
    if flip:
        expected = F.hflip(expected)
    got = crop(np.asarray(image), Box(*box, flip), Shape(View(1, bicubic=bicubic), px))
    assert (got.shape, got.dtype) == ((px, px, 3), np.uint8)
    assert (got == np.asarray(expected)).all()


# Images decoded at a smaller size


@given(seeds, sides, sides, sides, sides)
@settings(deadline=None)
def test_scaled_boxes_are_inside_the_image(
    seed: int, width: int, height: int, to_width: int, to_height: int
) -> None:
    box = draw_box(np.random.default_rng(seed), View(1), width, height)
    got = scaled(box, (width, height), (to_width, to_height))
    assert inside(got, to_width, to_height)
    assert got.flip == box.flip


@given(seeds, st.integers(200, 2000), st.integers(200, 2000), st.sampled_from([1, 2, 4, 8]))
@settings(deadline=None)
def test_scaled_boxes_show_the_same(seed: int, width: int, height: int, by: int) -> None:
    """To within a pixel of the smaller image, at each edge."""
    box = draw_box(np.random.default_rng(seed), View(1), width, height)
    size = math.ceil(width / by), math.ceil(height / by)
    got = scaled(box, (width, height), size)
    x, y = size[0] / width, size[1] / height
    assert abs(got.left - box.left * x) <= 1 and abs(got.top - box.top * y) <= 1
    assert abs(got.width - box.width * x) <= 1 and abs(got.height - box.height * y) <= 1


def test_scaled_by_hand() -> None:
    box = Box(31, 20, 41, 60, True)
    assert scaled(box, (100, 80), (100, 80)) == box
    assert scaled(box, (100, 80), (50, 40)) == Box(15, 10, 20, 30, True)
    assert scaled(Box(99, 79, 1, 1, False), (100, 80), (10, 8)) == Box(9, 7, 1, 1, False)


@given(
    seeds,
    st.integers(8, 1000),
    st.integers(8, 1000),
    st.lists(st.integers(4, 64), min_size=1, max_size=4),
    st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_no_view_of_an_image_of_least_px_is_enlarged(
    seed: int, width: int, height: int, views_px: list[int], up: bool
) -> None:
    """The image is reduced to it, its longer side rounded or, as libjpeg does it, up."""
    rng = np.random.default_rng(seed)
    boxes = [draw_box(rng, View(1), width, height) for _ in views_px]
    shorter = min(width, height)
    least = least_px(boxes, views_px, shorter)
    if least > shorter:  # some crop has fewer pixels than its view from the start
        assert any(min(b.width, b.height) < px for b, px in zip(boxes, views_px, strict=True))
        return
    longer = max(width, height) * least / shorter
    longer = math.ceil(longer) if up else round(longer)
    size = (least, longer) if width < height else (longer, least)
    if width == height:
        size = (least, least)
    for box, px in zip(boxes, views_px, strict=True):
        got = scaled(box, (width, height), size)
        assert min(got.width, got.height) >= px


def test_least_px_by_hand() -> None:
    """A crop of half the shorter side, of 32 px: twice that. One of all of it, of 96 px: those."""
    half, whole = Box(0, 0, 150, 100, False), Box(0, 0, 300, 200, False)
    assert least_px([half], [32], 200) == 64
    assert least_px([whole], [96], 200) == 96
    assert least_px([half, whole], [32, 96], 200) == 96
    assert least_px([half, whole], [64, 96], 200) == 128
    assert least_px([Box(0, 0, 90, 100, False)], [32], 200) == 72  # 71.1


# Sizes


@pytest.mark.parametrize(
    ("image_px", "patch_px", "small"),
    [
        (224, 1, 96),
        (224, 16, 96),
        (224, 14, 98),
        (64, 1, 27),
        (64, 16, 32),
        (32, 1, 14),
        (32, 16, 16),
        (32, 4, 12),
        (16, 16, 16),
    ],
)
def test_sizes_of_views(image_px: int, patch_px: int, small: int) -> None:
    """Small views are 96 / 224 of the image's side, in whole patches, one at least."""
    views = RECIPES["swav"]["paper"].views
    assert [shape.px for shape in shapes(views, image_px, patch_px)] == [image_px, small]
    assert [shape.view for shape in shapes(views, image_px, patch_px)] == list(views)


def test_sides_of_all_recipes_are_of_full_size_first() -> None:
    for presets in RECIPES.values():
        for recipe in presets.values():
            px = [shape.px for shape in shapes(recipe.views, 224, 16)]
            assert px == sorted(px, reverse=True)
            assert px[0] == 224
            assert all(0 < view.scale[0] < view.scale[1] <= 1 for view in recipe.views)


def test_a_view_of_one_pixel_at_least() -> None:
    assert [s.px for s in shapes((replace(View(1), side=0.001),), 64)] == [1]


# What a domain has, and photographs have not


def test_without_them_views_are_what_they_were() -> None:
    """To the random number."""
    plain, other = View(1), View(1, vertical_flip_p=0.5, quarter_turns=True, rotation=30)
    a, b = np.random.default_rng(0), np.random.default_rng(0)
    assert draw_box(a, plain, 100, 80)[5:] == (False, 0)
    assert a.random() != (draw_box(b, other, 100, 80), b.random())[1]
    assert draw_parameters(a, plain)[ROTATION] == 0


def test_ways_to_lie_are_as_often() -> None:
    rng = np.random.default_rng(0)
    view = View(1, vertical_flip_p=0.5, quarter_turns=True, rotation=90)
    boxes = [draw_box(rng, view, 64, 64) for _ in range(2000)]
    assert np.mean([box.upside_down for box in boxes]) == pytest.approx(0.5, abs=0.05)
    turns = np.bincount([box.turns for box in boxes], minlength=4) / len(boxes)
    assert turns == pytest.approx([0.25] * 4, abs=0.05)
    angles = [float(draw_parameters(rng, view)[ROTATION]) for _ in range(2000)]
    assert -np.pi / 2 <= min(angles) < -1.4 and 1.4 < max(angles) <= np.pi / 2
    assert np.mean(angles) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_is_laid_as_drawn(flip: bool, upside_down: bool, turns: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image, shape = Image.fromarray(pixels), Shape(View(1), 8)
    found = crop(pixels, Box(0, 0, 8, 8, flip, upside_down, turns), shape)
    expected = image
    if flip:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if upside_down:
        expected = expected.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    for _ in range(turns):
        expected = expected.transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(found, np.asarray(expected))
    box = Box(2, 2, 4, 4, flip, upside_down, turns)
    assert scaled(box, (8, 8), (4, 4)) == Box(1, 1, 2, 2, flip, upside_down, turns)
