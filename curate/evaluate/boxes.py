"""Boxes of images: COCO's JSON, or VOC's XML."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError, one_line
from curate.evaluate.annotated import ANNOTATION_BYTES, Size, bytes_of, files_below
from curate.settings import AnnotatedSettings
from curate.sources.base import Item, read_files
from curate.storage import Document

T = TypeVar("T")

BROKEN = (KeyError, TypeError, ValueError, OverflowError, AttributeError)  # of JSON's own shape


@dataclass(frozen=True)
class Scene:
    """An image and its boxes. A box is left, top, right, bottom in px from the image's upper left
    corner, so that the whole image is 0, 0, width, height."""

    image: str  # URI
    boxes: NDArray[np.float64]  # (N, 4)
    labels: NDArray[np.int64]  # (N,) places in Boxes.classes
    ignored: NDArray[np.bool_]  # (N,) COCO's crowds and VOC's difficult ones
    size: Size | None  # as the annotations state it


@dataclass(frozen=True)
class Boxes:
    classes: list[str]
    scenes: list[Scene]

    def counted(self) -> int:
        """Boxes that are to be found."""
        return sum(int((~scene.ignored).sum()) for scene in self.scenes)

    def in_classes(self, classes: list[str], key: str) -> Boxes:
        """The same boxes, their labels as places in `classes`.

        Raises CurateError for a box whose class is not among them.
        """
        place = {name: number for number, name in enumerate(classes)}
        used = {int(label) for scene in self.scenes for label in scene.labels}
        unknown = sorted({self.classes[label] for label in used} - set(place))
        if unknown:
            raise CurateError(
                f"{key}.annotations: class {unknown[0]!r} is not in those of train; "
                "add it there, or take its boxes out"
            )
        numbers = np.array([place.get(name, -1) for name in self.classes], np.int64)
        scenes = [replace(scene, labels=numbers[scene.labels]) for scene in self.scenes]
        return Boxes(classes, scenes)


def read_boxes(settings: AnnotatedSettings, key: str) -> Boxes:
    """Every image that the annotations name, with its boxes; none is opened.

    COCO's boxes are left, top, width, height from 0; VOC's the first and last pixel, from 1: what
    VOC calls 1, 1, w, h is the whole image. Boxes without an area are left out. Classes are COCO's
    categories by id, used or not, and for VOC the names in use, sorted.

    key: the setting, named in errors. Raises CurateError where there are no annotations, for those
    that cannot be read, and for images that are not there.
    """
    images = files_below(settings.images, f"{key}.images")
    if settings.annotations.lower().endswith(".json"):
        found = _read_coco(settings, key, images)
    else:
        found = _read_voc(settings, key, images)
    if not found.scenes:
        raise CurateError(f"{key}.annotations={settings.annotations}: names no image")
    return found


def _read_coco(settings: AnnotatedSettings, key: str, images: dict[str, str]) -> Boxes:
    uri = settings.annotations
    named = f"{key}.annotations={uri}"
    try:
        document = json.loads(bytes_of(uri, f"{key}.annotations="))
    except ValueError as error:
        raise CurateError(f"{named}: not JSON: {one_line(error, 160)}; export it again") from error
    for part in ("categories", "images", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(part), list):
            raise CurateError(f"{named}: no list {part!r}; COCO's JSON for detection is meant")

    def each(part: str, read: Callable[[Document], T]) -> list[T]:
        found = []
        for number, entry in enumerate(document[part]):
            try:
                found.append(read(entry))
            except BROKEN as error:
                what = f"no {error}" if isinstance(error, KeyError) else one_line(error, 160)
                raise CurateError(f"{named}: {part}[{number}]: {what}; mend it") from error
        return found

    categories = dict(sorted(each("categories", lambda entry: (entry["id"], str(entry["name"])))))
    classes = list(categories.values())
    if len(set(classes)) < len(document["categories"]):
        raise CurateError(f"{named}: categories share an id or a name; make each its own")
    place = {category: number for number, category in enumerate(categories)}
    listed = each("images", lambda entry: (entry["id"], _coco_image(entry)))
    rows: dict[Any, list[tuple[list[float], int, bool]]] = {image: [] for image, _ in listed}
    if len(rows) < len(listed):
        raise CurateError(f"{named}: images share an id; make each its own")

    def add(entry: Document) -> None:
        left, top, width, height = (float(value) for value in entry["bbox"])
        corners = _finite([left, top, left + width, top + height])
        if entry["image_id"] not in rows:
            raise ValueError(f"image_id {entry['image_id']} is not in its images")
        if entry["category_id"] not in place:
            raise ValueError(f"category_id {entry['category_id']} is not in its categories")
        ignored = bool(entry.get("iscrowd", 0))
        rows[entry["image_id"]].append((corners, place[entry["category_id"]], ignored))

    each("annotations", add)
    scenes = []
    for image, (name, size) in listed:
        if name not in images:
            raise _image_missing(named, name, settings, key)
        scenes.append(_scene(images[name], size, rows[image]))
    return Boxes(classes, scenes)


def _coco_image(entry: Document) -> tuple[str, Size | None]:
    width, height = int(entry.get("width") or 0), int(entry.get("height") or 0)
    return str(entry["file_name"]), (width, height) if width and height else None


def _read_voc(settings: AnnotatedSettings, key: str, images: dict[str, str]) -> Boxes:
    files = files_below(settings.annotations, f"{key}.annotations")
    uris = [uri for path, uri in files.items() if path.lower().endswith(".xml")]
    if not uris:
        raise CurateError(
            f"{key}.annotations={settings.annotations}: no annotations; "
            "name COCO's .json, or a folder of VOC's .xml files"
        )
    found = []
    for item in read_files([Item(key=uri, uri=uri) for uri in uris], ANNOTATION_BYTES):
        if item.data is None:
            raise CurateError(f"{item.uri}: {item.error}; check that it can be read")
        try:
            name, size, objects = _voc_image(ElementTree.fromstring(item.data))
        except (ElementTree.ParseError, *BROKEN) as error:
            raise CurateError(f"{item.uri}: not VOC's XML: {one_line(error)}; mend it") from error
        if name not in images:
            raise _image_missing(item.uri, name, settings, key)
        found.append((images[name], size, objects))
    classes = sorted({name for *_, objects in found for _, name, _ in objects})
    place = {name: number for number, name in enumerate(classes)}
    return Boxes(
        classes,
        [
            _scene(uri, size, [(box, place[name], ignored) for box, name, ignored in objects])
            for uri, size, objects in found
        ],
    )


def _voc_image(
    root: ElementTree.Element,
) -> tuple[str, Size | None, list[tuple[list[float], str, bool]]]:
    objects = []
    for entry in root.findall("object"):  # a person's parts are boxes too, further down
        corners = [float(_text(entry, f"bndbox/{x}")) for x in ("xmin", "ymin", "xmax", "ymax")]
        # The first and last pixel, counted from 1 → edges from 0
        box = _finite([corners[0] - 1, corners[1] - 1, corners[2], corners[3]])
        ignored = (entry.findtext("difficult") or "0").strip() == "1"
        objects.append((box, _text(entry, "name"), ignored))
    width, height = (int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    return _text(root, "filename"), (width, height) if width and height else None, objects


def _text(element: ElementTree.Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"no <{path}> in <{element.tag}>")
    return text


def _finite(corners: list[float]) -> list[float]:
    if not all(math.isfinite(value) for value in corners):
        raise ValueError(f"a box of {corners}")
    return corners


def _scene(uri: str, size: Size | None, rows: list[tuple[list[float], int, bool]]) -> Scene:
    rows = [row for row in rows if row[0][2] > row[0][0] and row[0][3] > row[0][1]]
    return Scene(
        uri,
        np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4),
        np.array([label for _, label, _ in rows], np.int64),
        np.array([ignored for *_, ignored in rows], bool),
        size,
    )


def _image_missing(named: str, name: str, settings: AnnotatedSettings, key: str) -> CurateError:
    return CurateError(
        f"{named}: image {name} is not in {key}.images={settings.images}; "
        "add it, or take its annotations out"
    )
