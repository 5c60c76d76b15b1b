"""COCO's JSON, VOC's XML and masks: what they mean, and what is said of those that are wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import ExifTags, Image

from curate.errors import CurateError
from curate.evaluate.annotated import fitted, read_image
from curate.evaluate.boxes import Boxes, read_boxes
from curate.evaluate.masks import read_mask, read_masks
from curate.settings import AnnotatedSettings, ImageSettings
from tests import imagery
from tests.evaluate import scenes
from tests.evaluate.scenes import Rectangle

KEY = "evaluate.detection.train"


def annotated(folder: Path | str, what: str) -> AnnotatedSettings:
    return AnnotatedSettings(images=f"{folder}/images", annotations=f"{folder}/{what}")


def named_boxes(found: Boxes) -> list[tuple[str, list[list[float]], list[str]]]:
    return [
        (one.image, one.boxes.tolist(), [found.classes[label] for label in one.labels])
        for one in found.scenes
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return scenes.write(tmp_path / "set", images=3, seed=5, empty=1)


@pytest.fixture
def change(folder: Path) -> Callable[..., None]:
    """Rewrites boxes.json after `edit` has had its way with it."""

    def rewrite(edit: Callable[[Any], Any]) -> None:
        document = json.loads((folder / "boxes.json").read_text())
        edit(document)
        (folder / "boxes.json").write_text(json.dumps(document))

    return rewrite


def test_both_formats_tell_the_same_scene(folder: Path) -> None:
    coco = read_boxes(annotated(folder, "boxes.json"), KEY)
    voc = read_boxes(annotated(folder, "voc"), KEY)
    assert named_boxes(coco) == named_boxes(voc)
    assert [len(scene.boxes) for scene in coco.scenes] == [1, 1, 0]
    assert coco.scenes[2].boxes.shape == (0, 4)
    [one] = scenes.draw(5)
    edges = [one.left, one.top, one.left + one.width, one.top + one.height]
    assert coco.scenes[0].boxes.tolist() == [edges]
    assert {scene.size for scene in (*coco.scenes, *voc.scenes)} == {(scenes.WIDTH, scenes.HEIGHT)}


def test_voc_counts_pixels_from_1_to_the_last(folder: Path) -> None:
    whole = Rectangle("red", 0, 0, scenes.WIDTH, scenes.HEIGHT)
    text = scenes.voc("000.png", [whole])
    assert f"<xmin>1</xmin><ymin>1</ymin><xmax>{scenes.WIDTH}</xmax>" in text
    (folder / "voc" / "000.xml").write_text(text)
    found = read_boxes(annotated(folder, "voc"), KEY)
    assert found.scenes[0].boxes.tolist() == [[0, 0, scenes.WIDTH, scenes.HEIGHT]]


def test_classes(folder: Path) -> None:
    coco = read_boxes(annotated(folder, "boxes.json"), KEY)
    assert coco.classes == ["blue", "red"]  # ids 3 and 7
    assert coco.in_classes(["x", "red", "blue"], KEY).classes == ["x", "red", "blue"]
    assert [names for *_, names in named_boxes(coco.in_classes(["x", "red", "blue"], KEY))] == [
        names for *_, names in named_boxes(coco)
    ]
    used = {name for *_, names in named_boxes(coco) for name in names}
    missing = sorted(used)[0]
    with pytest.raises(CurateError, match=rf"test\.annotations: class '{missing}' is not in"):
        coco.in_classes(["x"], "evaluate.detection.test")


def test_a_class_that_is_declared_and_not_used_may_be_unknown(folder: Path, change: Any) -> None:
    change(lambda document: document["categories"].append({"id": 1, "name": "unicorn"}))
    found = read_boxes(annotated(folder, "boxes.json"), KEY)
    assert found.classes == ["unicorn", "blue", "red"]
    assert named_boxes(found.in_classes(["red", "blue"], KEY)) == named_boxes(found)


def test_crowds_difficult_boxes_and_boxes_without_area(folder: Path, change: Any) -> None:
    def edit(document: Any) -> None:
        first = document["annotations"][0]
        document["annotations"] += [
            first | {"id": 10, "iscrowd": 1},
            first | {"id": 11, "bbox": [3, 3, 0, 5]},
            first | {"id": 12, "bbox": [3, 3, 5, -1]},
        ]

    change(edit)
    coco = read_boxes(annotated(folder, "boxes.json"), KEY)
    assert coco.scenes[0].ignored.tolist() == [False, True]
    assert coco.counted() == 2
    path = folder / "voc" / "000.xml"
    path.write_text(path.read_text().replace("<bndbox>", "<difficult>1</difficult><bndbox>"))
    voc = read_boxes(annotated(folder, "voc"), KEY)
    assert voc.scenes[0].ignored.tolist() == [True]
    assert voc.counted() == 1


def test_images_and_annotations_on_another_filesystem(folder: Path) -> None:
    remote = fsspec.filesystem("memory")
    remote.put(str(folder), "/annotated-set", recursive=True)
    for what in ("boxes.json", "voc"):
        here = named_boxes(read_boxes(annotated(folder, what), KEY))
        there = named_boxes(read_boxes(annotated("memory://annotated-set", what), KEY))
        assert [rest for _, *rest in there] == [rest for _, *rest in here]
    [pair, *_] = read_masks(annotated("memory://annotated-set", "masks"), KEY)
    assert read_mask(pair.mask).shape == (scenes.HEIGHT, scenes.WIDTH)
    image = read_image(pair.image, ImageSettings(), min)
    assert image.size == (scenes.WIDTH, scenes.HEIGHT)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d.pop("images"), "no list 'images'; COCO's JSON for detection is meant"),
        (lambda d: d["images"][0].pop("file_name"), r"images\[0\]: no 'file_name'; mend it"),
        (lambda d: d["images"][1].update(id=0), "images share an id"),
        (lambda d: d["images"][1].update(file_name="z.png"), r"image z\.png is not in .*images="),
        (lambda d: d["images"].clear(), r"annotations\[0\]: image_id 0 is not in its images"),
        (lambda d: [d[part].clear() for part in ("images", "annotations")], "names no image"),
        (lambda d: d["annotations"][1].update(bbox=[1, 2, 3]), r"annotations\[1\]: .*; mend it"),
        (lambda d: d["annotations"][1].update(bbox=[1, 2, 3, float("nan")]), "a box of .*nan"),
        (lambda d: d["annotations"][1].update(bbox=None), r"annotations\[1\]: .*; mend it"),
        (lambda d: d["annotations"][0].update(category_id=4), "category_id 4 is not in its cat"),
        (lambda d: d["categories"][0].update(name="blue"), "categories share an id or a name"),
    ],
)
def test_coco_that_is_wrong(folder: Path, change: Any, edit: Any, said: str) -> None:
    change(edit)
    with pytest.raises(CurateError, match=rf"boxes\.json: .*{said}|boxes\.json: {said}") as error:
        read_boxes(annotated(folder, "boxes.json"), KEY)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{KEY}.annotations=")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("</annotation>", "", r"000\.xml: not VOC's XML: no element found.*; mend it"),
        ("<filename>000.png</filename>", "", r"no <filename> in <annotation>"),
        ("<filename>000.png", "<filename>z.png", r"000\.xml: image z\.png is not in .*images="),
        ("<xmin>", "<xmin>one", r"000\.xml: not VOC's XML: could not convert"),
        ("<ymax>", "<z></z><ymaxx>", r"000\.xml: not VOC's XML: mismatched tag"),
        ("<name>", "<name>  </name><name>", r"no <name> in <object>"),
    ],
)
def test_voc_that_is_wrong(folder: Path, old: str, new: str, said: str) -> None:
    path = folder / "voc" / "000.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CurateError, match=said) as error:
        read_boxes(annotated(folder, "voc"), KEY)
    assert "\n" not in str(error.value)


def test_annotations_that_are_not_there(folder: Path) -> None:
    (folder / "boxes.json").write_text('{"images": [')
    with pytest.raises(CurateError, match=r"annotations=.*boxes\.json: not JSON: .*; export it"):
        read_boxes(annotated(folder, "boxes.json"), KEY)
    with pytest.raises(CurateError, match=r"annotations=.*none\.json: no such file; check"):
        read_boxes(annotated(folder, "none.json"), KEY)
    with pytest.raises(CurateError, match=r"annotations=.*nowhere: no such folder; check"):
        read_boxes(annotated(folder, "nowhere"), KEY)
    with pytest.raises(CurateError, match=r"annotations=.*masks: no annotations; name COCO's"):
        read_boxes(annotated(folder, "masks"), KEY)
    with pytest.raises(CurateError, match=r"train\.images=.*lost/images: no such folder"):
        read_boxes(annotated(folder / "lost", "voc"), KEY)
    with pytest.raises(CurateError, match=r"annotations=.*voc: no mask in it; name a folder"):
        read_masks(annotated(folder, "voc"), KEY)


def test_masks_find_their_images(tmp_path: Path) -> None:
    folder = scenes.write(tmp_path / "set", images=3, seed=0)
    (folder / "masks" / "001.png").unlink()  # its image is left out
    for name in ("images", "masks"):
        (folder / name / "deeper").mkdir()
        (folder / name / "002.png").rename(folder / name / "deeper" / "002.png")
    pairs = read_masks(annotated(folder, "masks"), KEY)
    assert [pair.image.removeprefix(f"{folder}/images/") for pair in pairs] == [
        *("000.png", "deeper/002.png")
    ]
    assert [pair.mask.removeprefix(f"{folder}/masks/") for pair in pairs] == [
        *("000.png", "deeper/002.png")
    ]
    (folder / "images" / "000.jpg").write_bytes(imagery.jpeg())
    with pytest.raises(CurateError, match=r"000\.jpg, .*000\.png: one mask for both; keep one"):
        read_masks(annotated(folder, "masks"), KEY)
    (folder / "images" / "000.jpg").unlink()
    (folder / "images" / "000.png").unlink()
    with pytest.raises(CurateError, match=r"masks/000\.png: no image 000\.\* in .*images="):
        read_masks(annotated(folder, "masks"), KEY)


def test_masks_may_lie_beside_their_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(imagery.jpeg())
    Image.new("L", (48, 32)).save(tmp_path / "a.png")
    both = AnnotatedSettings(images=str(tmp_path), annotations=str(tmp_path))
    [pair] = read_masks(both, KEY)
    assert (pair.image, pair.mask) == (f"{tmp_path}/a.jpg", f"{tmp_path}/a.png")


def test_a_masks_values_are_what_is_written_in_it(tmp_path: Path) -> None:
    """Of any depth: 2 and 4 bits of grey are stretched by Pillow."""
    values = np.array([[0, 1, 1, 0], [1, 0, 0, 1]], np.uint8)
    paths = {name: tmp_path / f"{name}.png" for name in ("grey", "palette", "bits")}
    Image.fromarray(values).save(paths["grey"])
    palette = Image.fromarray(values)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.save(paths["palette"])
    Image.fromarray(values.astype(bool)).save(paths["bits"])
    for depth, rows in ((2, b"\0\x14\0\x41"), (4, b"\0\x01\x10\0\x10\x01")):
        paths[f"grey{depth}"] = tmp_path / f"grey{depth}.png"
        paths[f"grey{depth}"].write_bytes(imagery.png(4, 2, depth, 0, rows))
    for path in paths.values():
        np.testing.assert_array_equal(read_mask(str(path), (4, 2)), values, err_msg=path.name)


def test_masks_that_are_wrong(tmp_path: Path) -> None:
    good = imagery.encode(Image.new("L", (4, 2), 1), "PNG")
    for name, data, said in (
        ("colour", imagery.encode(Image.new("RGB", (4, 2)), "PNG"), "RGB pixels; masks are PNGs"),
        ("deep", imagery.every_format()["png-grey16"], "I;16 pixels; masks are PNGs"),
        ("short", good[:-20], "not a whole PNG: .*; save it again"),
        ("flipped", good[:-16] + b"\x55" + good[-15:], "not a whole PNG: .*; save it again"),
        ("empty", b"", "not a whole PNG: .*; save it again"),
    ):
        (tmp_path / f"{name}.png").write_bytes(data)
        with pytest.raises(CurateError, match=rf"{name}\.png: {said}"):
            read_mask(str(tmp_path / f"{name}.png"))
    (tmp_path / "good.png").write_bytes(good)
    with pytest.raises(CurateError, match=r"good\.png: 4×2 px, and its image is 2×4 px; make"):
        read_mask(str(tmp_path / "good.png"), (2, 4))


def test_images_stand_upright_and_may_come_smaller(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    uri = str(tmp_path / "a.jpg")
    imagery.picture(640, 480).save(uri, exif=exif)
    asked: list[tuple[int, int]] = []
    image = read_image(uri, ImageSettings(), lambda *size: asked.append(size) or 60)
    assert image.size == (480, 640)
    assert asked == [(480, 640)]
    assert image.rgb.size == (120, 160)  # a quarter, twice what was asked for


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(imagery.jpeg()[:-200])
    with pytest.raises(CurateError, match=r"a\.jpg: damaged: .*; mend it, or take out its ann"):
        read_image(str(tmp_path / "a.jpg"), ImageSettings(), min)
    (tmp_path / "a.jpg").write_bytes(imagery.jpeg())
    with pytest.raises(CurateError, match=r"a\.jpg: 48×32 is over max_pixels 99"):
        read_image(str(tmp_path / "a.jpg"), ImageSettings(max_pixels=99), min)
    with pytest.raises(CurateError, match=r"a\.jpg: .* bytes is over max_bytes 99"):
        read_image(str(tmp_path / "a.jpg"), ImageSettings(max_bytes=99), min)
    (tmp_path / "a.jpg").unlink()
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(CurateError, match=r"a\.jpg: .*not a regular file"):
        read_image(str(tmp_path / "a.jpg"), ImageSettings(), min)


def test_fitted() -> None:
    assert fitted(640, 480, 800) == (1067, 800)
    assert fitted(480, 640, 800) == (800, 1067)
    assert fitted(4000, 1000, 800) == (1333, 333)  # the longer side is COCO's 1333 at most
    assert fitted(50_000, 10, 96) == (160, 1)
