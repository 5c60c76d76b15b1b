"""Name → (module, feature_dim, preprocessing): the E of the algorithm, images to embeddings."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from curate import __version__, storage
from curate.embedding.backbones import build_backbone
from curate.errors import CurateError, one_line
from curate.images import Preprocessing
from curate.runfiles.files import EncoderFiles, RunFiles
from curate.settings import EncoderSettings, ImageSettings
from curate.settings.sources import USUAL_PIXELS

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Encoder:
    module: nn.Module  # (N, channels, image_px, image_px) float → (N, feature_dim)
    feature_dim: int
    preprocessing: Preprocessing

    def save(self, uri: str) -> None:
        """Its weights as safetensors."""
        state = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        storage.write_bytes(uri, save_safetensors(state))


@dataclass(frozen=True)
class Card:
    """What an encoder that was trained here is, beside its weights as JSON."""

    backbone: str | None = None
    small_stem: bool | None = None
    image_px: int | None = None
    feature_dim: int | None = None
    crop_fraction: float | None = None  # by which its images were looked at
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int | None = None  # 3, of 8 bits, where not said
    bits: int | None = None
    method: str | None = None
    preset: str | None = None
    epochs: int | None = None
    images: int | None = None  # that it was trained on
    dataset: str | None = None  # their fingerprint
    best: str | None = None  # by which figure, and when, if it is not the training's last
    init: str | None = None  # what it began from, if not from random weights
    curate: str = __version__

    def write(self, files: EncoderFiles) -> None:
        known = {name: value for name, value in vars(self).items() if value is not None}
        storage.write_json(files.card, known)

    @staticmethod
    def read(files: EncoderFiles) -> Card | None:
        """None where there is none. Raises CurateError for a damaged one."""
        if not storage.exists(files.card):
            return None
        try:
            document = dict(json.loads(storage.read_bytes(files.card)))
        except (ValueError, TypeError) as error:
            raise CurateError(
                f"encoder.checkpoint: {files.card}: damaged: {one_line(error)}"
            ) from error
        return Card(**{k: v for k, v in document.items() if k in Card.__dataclass_fields__})


@dataclass(frozen=True)
class Keys:
    """Where a config says which weights are meant, for errors to name."""

    section: str = "encoder"
    checkpoint: str = "checkpoint"
    pretrained: str = "pretrained=true"


KEYS = Keys()


def build(settings: EncoderSettings, keys: Keys = KEYS) -> Encoder:
    """The encoder with its weights: pretrained, from a checkpoint, or random by the seed.

    Raises CurateError for an unknown backbone, an image size it cannot take, weights that cannot
    be had, or a checkpoint of another architecture.
    """
    encoder = _architecture(settings, keys, pretrained=settings.pretrained)
    if settings.checkpoint:
        _load_checkpoint(encoder.module, settings, keys)
    return encoder


def width(settings: EncoderSettings) -> int:
    """Dimensions of the embeddings, whatever the weights."""
    return _architecture(settings, pretrained=False).feature_dim


def is_there(place: str) -> bool:
    """Whether a checkpoint, or a folder with an encoder made here, is at this place."""
    return storage.exists(place) or storage.exists(EncoderFiles(place).weights)


def folder_of(place: str) -> str:
    """Of a run, the folder of the encoder that it has pretrained; any other place itself."""
    pretrained = RunFiles(place).pretrain
    own = storage.exists(EncoderFiles(place).card)
    return pretrained.folder if not own and storage.exists(pretrained.card) else place


def described(place: str, otherwise: EncoderSettings) -> EncoderSettings:
    """Settings for the encoder in a folder of the project's own, by its card; of any other
    checkpoint, `otherwise` with that checkpoint."""
    own = {"checkpoint": place, "pretrained": False, "pretrain": None, "pool": None}
    card = Card.read(EncoderFiles(place))
    if card is not None:
        named = ("backbone", "small_stem", "image_px", "mean", "std", "channels", "bits")
        own |= {n: getattr(card, n) for n in named if getattr(card, n) is not None}
    return EncoderSettings.model_validate(otherwise.model_dump() | own)


def rebuild(settings: EncoderSettings, uri: str) -> Encoder:
    """The same encoder on another machine, from the weights that `save` left at `uri`."""
    encoder = _architecture(settings, pretrained=False)
    encoder.module.load_state_dict(load_safetensors(storage.read_bytes(uri)), strict=True)
    return encoder


def weights_hash(module: nn.Module) -> str:
    """sha256 over every weight and buffer, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _architecture(settings: EncoderSettings, keys: Keys = KEYS, *, pretrained: bool) -> Encoder:
    backbone = build_backbone(
        settings.backbone,
        settings.image_px,
        seed=settings.seed,
        pretrained=pretrained,
        small_stem=settings.small_stem,
        pool=settings.pool,
        channels=settings.channels or 3,
        section=keys.section,
        pretrained_key=keys.pretrained,
    )
    return Encoder(
        backbone.module.eval(),
        backbone.feature_dim,
        Preprocessing(
            settings.image_px,
            settings.crop_fraction,
            settings.mean or backbone.mean,
            settings.std or backbone.std,
            settings.bits or 8,
        ),
    )


def _load_checkpoint(module: nn.Module, settings: EncoderSettings, keys: Keys) -> None:
    """Fill the module from a checkpoint file: a state dict as it is, or inside a trainer's own."""
    path = str(settings.checkpoint)
    named, section = f"{keys.section}.{keys.checkpoint}={path}", keys.section
    state = _read_checkpoint(path, settings, named, section)
    wanted = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    probe = next(iter(wanted))
    prefixes = [key.removesuffix(probe) for key in state if key.endswith(probe)]
    prefixes = [p for p in prefixes if not p or p.endswith(".")]
    whole = [p for p in prefixes if all(p + key in state for key in wanted)]
    if not whole:
        missing = [key for key in wanted if key not in state]
        raise CurateError(
            f"{named}: not a {settings.backbone}: lacks {len(missing)} weights, "
            f"first {', '.join(missing[:3])}; set {section}.backbone to its architecture"
        )
    if len(whole) > 1 and "" not in whole:
        raise CurateError(
            f"{named}: holds several encoders ({', '.join(whole)}); save the one that is meant"
        )
    prefix = "" if "" in whole else whole[0]
    mine = {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
    tops = {key.split(".")[0] for key in wanted}
    for key, value in mine.items():
        if key in wanted and value.shape != wanted[key].shape:
            raise CurateError(
                f"{named}: {key} is {tuple(value.shape)}, and {tuple(wanted[key].shape)} in a "
                f"{settings.backbone} at {settings.image_px} px; "
                f"set {section}.backbone and image_px"
            )
        # A deeper network holds every weight of a shallower one, and more in the same places;
        # a classifier or projector stands apart.
        if key not in module.state_dict() and key.split(".")[0] in tops:
            raise CurateError(
                f"{named}: not a {settings.backbone}: has {key} as well; "
                f"set {section}.backbone to its architecture"
            )
    module.load_state_dict({k: v for k, v in mine.items() if k in wanted}, strict=False)


def _read_checkpoint(path: str, settings: EncoderSettings, named: str, section: str) -> StateDict:
    """Every tensor of a checkpoint by its name; nested dicts joined by dots."""
    own = EncoderFiles(path)
    if path.endswith("/") or storage.exists(own.weights):
        path = own.weights
    try:
        data = storage.read_bytes(path)
        if path.endswith(".safetensors"):
            state: StateDict = load_safetensors(data)
        else:
            state = _flatten(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise CurateError(f"{named}: no such file") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CurateError(
            f"{named}: not a checkpoint of weights alone: {one_line(error, 160)}"
        ) from error
    except SafetensorError as error:
        raise CurateError(f"{named}: damaged: {one_line(error)}") from error
    beside = EncoderFiles(path.rpartition("/")[0])
    if path == beside.weights:
        _check_card(beside, settings, section)
    return state


def _check_card(files: EncoderFiles, settings: EncoderSettings, section: str) -> None:
    """The project's own checkpoints have a card that says what they are."""
    card = Card.read(files)
    for name in ("backbone", "small_stem"):
        mine, its = getattr(settings, name), getattr(card, name, None)
        if its is not None and its != mine:
            raise CurateError(f"{section}.{name}={mine}: {files.card} says {its}; use that")
    if card is not None:
        _check_pixels(settings, card, f"{files.card} says")


def check_images(settings: EncoderSettings, images: ImageSettings, place: str) -> None:
    """Raises CurateError for an encoder, at a place, of other images than are made."""
    _check_pixels(images, settings, f"the encoder at {place} sees")


def _check_pixels(
    mine: EncoderSettings | ImageSettings, its: Card | EncoderSettings, says: str
) -> None:
    for name, usual in USUAL_PIXELS.items():
        asked, found = getattr(mine, name) or usual, getattr(its, name) or usual
        if asked != found:
            raise CurateError(f"images.{name}={asked}: {says} {found}; use that")


def _flatten(value: Any, prefix: str = "") -> StateDict:
    if isinstance(value, Tensor):
        return {prefix: value}
    flat: StateDict = {}
    if isinstance(value, dict):
        # A trainer's wrapping is left out of the names, what it wraps keeps its own
        for key, inner in value.items():
            wrapper = not prefix and key in ("state_dict", "model", "model_state_dict")
            name = "" if wrapper and isinstance(inner, dict) else f"{prefix}.{key}".lstrip(".")
            flat.update(_flatten(inner, name))
    return flat
