"""Where images come from: one section a kind of source."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from curate.settings.base import AbsolutePath, AbsolutePaths, Settings, SourceName


class SourceSettings(Settings):
    """What every kind of source has."""

    name: SourceName
    limit: int | None = Field(None, ge=1)  # the first so many images, in plan order


class ImageFolderSettings(SourceSettings):
    """A tree of image files; the first folder below `path` is the label."""

    kind: Literal["image_folder"]
    path: AbsolutePath


class WebDatasetSettings(SourceSettings):
    """Tars of `key.jpg` with `key.cls` and other sidecars beside it."""

    kind: Literal["webdataset"]
    path: AbsolutePaths


class ParquetSettings(SourceSettings):
    """Parquet files with encoded images, or with paths to them."""

    kind: Literal["parquet"]
    path: AbsolutePaths
    image_column: str = "image"  # encoded bytes, or Hugging Face's struct of bytes and path
    path_column: str | None = None  # where set, images are read from these paths instead
    key_column: str | None = None  # the row number where there is none
    label_column: str | None = None
    allow_private: bool = False  # URLs of private networks are read too


class UrlListSettings(SourceSettings):
    """A text file with one URL or path a line, or a CSV with a header."""

    kind: Literal["url_list"]
    path: AbsolutePaths
    url_column: str = "url"
    key_column: str | None = None
    label_column: str | None = None
    allow_private: bool = False  # URLs of private networks are read too


KINDS = ["image_folder", "webdataset", "parquet", "url_list"]
Source = Annotated[
    ImageFolderSettings | WebDatasetSettings | ParquetSettings | UrlListSettings,
    Field(discriminator="kind"),
]


USUAL_PIXELS = {"channels": 3, "bits": 8}  # where nothing is said of them


class ImageSettings(Settings):
    """What is made of images, and which are refused."""

    channels: Literal[1, 3] = 3  # grey, or RGB
    bits: Literal[8, 16] = 8  # of each channel; 16 for grey alone, which decoders have

    min_px: int = Field(8, ge=1)  # shorter side
    # width × height; Pillow itself refuses from 178,956,970 on
    max_pixels: int = Field(100_000_000, ge=1, le=178_956_970)
    max_bytes: int = Field(256 << 20, ge=1)  # of the encoded image, before it is read
    max_rejected_fraction: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _to_be_had(self) -> ImageSettings:
        if self.bits == 16 and self.channels == 3:
            raise ValueError("bits=16: of grey images alone; set channels: 1, or bits: 8")
        return self

    @property
    def pixel_bytes(self) -> int:
        """Decoded."""
        return self.channels * self.bits // 8


def _named(name: str) -> BeforeValidator:
    """For a source that needs no name of its own."""
    return BeforeValidator(
        lambda value: {"name": name, **value} if isinstance(value, dict) else value
    )


UNNAMED_TARGET = "target"
TargetSource = Annotated[Source, _named(UNNAMED_TARGET)]
LabelledSource = Annotated[Source, _named("labelled")]
