"""The keys of pretraining: what is taken, and that each mistake is one line that names its key."""

from __future__ import annotations

from typing import Any

import pytest

from curate.errors import CurateError
from curate.settings import ImageFolderSettings, PretrainSettings, RunSettings
from curate.settings import load as config
from curate.settings.recipes import RECIPES

FOLDER = {"kind": "image_folder", "path": "images"}
GOOD: dict[str, Any] = {
    "target": FOLDER,
    "open": [{"name": "web", "kind": "webdataset", "path": "a/*.tar"}],
    "output": "run",
}
KNOWN = "'simclr', 'moco', 'byol', 'simsiam', 'swav', 'dino', 'mae', 'drlim' or 'exemplar'"


def parse(**sections: Any) -> RunSettings:
    return config.parse({**GOOD, **sections}, "run.yaml")


def pretrain(**keys: Any) -> PretrainSettings:
    settings = parse(pretrain=keys).pretrain
    assert settings is not None
    return settings


def error_of(**sections: Any) -> str:
    with pytest.raises(CurateError) as error:
        parse(**sections)
    message = str(error.value)
    assert "\n" not in message and "pydantic" not in message and "Input should" not in message
    return message.removeprefix("run.yaml: ")


# What is taken


def test_pretraining_is_off_unless_it_is_asked_for() -> None:
    assert parse().pretrain is None and parse().encoder.pretrain_on_target is None
    settings = pretrain()
    assert (settings.method, settings.preset) == ("simclr", None)
    assert settings.data == ["target", "coreset"]


@pytest.mark.parametrize("method", RECIPES)
def test_every_recipes_own_options_are_taken(method: str) -> None:
    for preset, recipe in RECIPES[method].items():
        settings = pretrain(method=method, preset=preset, options=recipe.options)
        assert settings.options == recipe.options
        assert list(map(type, settings.options.values())) == list(
            map(type, recipe.options.values())
        ), "1, 1.0 and true are three things"


@pytest.mark.parametrize(
    "data",
    [
        ["target"],
        ["open"],
        ["open", "target"],
        ["coreset"],
        ["target", "s3://bucket/other/coreset.parquet"],
        ["coreset", "other.parquet", "third.parquet"],
    ],
)
def test_unions(data: list[str]) -> None:
    assert pretrain(data=data).data == data


def test_one_set_needs_no_list() -> None:
    assert pretrain(data="open").data == ["open"]


def test_whole_numbers_do_for_shares() -> None:
    assert pretrain(options={"temperature": 1}).options == {"temperature": 1}


def test_probe_needs_no_names() -> None:
    probe = pretrain(probe={"train": FOLDER, "test": {**FOLDER, "name": "val"}}).probe
    assert probe is not None and (probe.every, probe.k) == (10, 20)
    assert isinstance(probe.train, ImageFolderSettings)
    assert (probe.train.name, probe.test.name) == ("labelled", "val")


def test_target_encoder_takes_the_encoders_model() -> None:
    encoder = parse(
        encoder={"image_px": 64, "pretrain_on_target": {"method": "moco", "epochs": "auto"}}
    ).encoder
    assert encoder.pretrain_on_target is not None
    assert encoder.pretrain_on_target.method == "moco"


# What is not


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        # methods, presets, options
        ({"method": "simclrr"}, f"pretrain.method=simclrr: must be {KNOWN}"),
        ({"method": None}, f"pretrain.method=null: must be {KNOWN}"),
        ({"preset": "v9", "method": "moco"}, "pretrain: preset v9: moco has v2, v1, simcore"),
        ({"preset": "v1"}, "pretrain: preset v1: simclr has paper, simcore"),
        (
            {"options": {"queue": 5}},
            "pretrain: options.queue: unknown to simclr, which has temperature, projection_dim, "
            "batch_norm",
        ),
        (
            {"method": "exemplar", "options": {"x": 1}},
            "pretrain: options.x: unknown to exemplar, which has no options",
        ),
        (
            {"options": {"projection_dim": 1.5}},
            "pretrain: options.projection_dim=1.5: must be a whole number",
        ),
        (
            {"options": {"temperature": True}},
            "pretrain: options.temperature=True: must be a number",
        ),
        (
            {"options": {"batch_norm": 1}},
            "pretrain: options.batch_norm=1: must be true or false",
        ),
        (
            {"options": {"temperature": "low"}},
            "pretrain.options.temperature=low: must be a finite number, or true or false",
        ),
        (
            {"options": {"temperature": float("nan")}},
            "pretrain.options.temperature=nan: must be a finite number, or true or false",
        ),
        ({"options": 3}, "pretrain.options=3: must be a section of keys"),
        # data
        ({"data": []}, "pretrain.data: needs at least 1, has 0"),
        ({"data": ["target", ""]}, "pretrain.data.1=: must not be empty"),
        ({"data": ["target", "target"]}, "pretrain: data: the same set is named twice"),
        (
            {"data": ["a.parquet", "target", "a.parquet"]},
            "pretrain: data: the same set is named twice",
        ),
        (
            {"data": ["open", "coreset"]},
            "pretrain: data: a coreset is part of the open set; leave out one of them",
        ),
        (
            {"data": ["x.parquet", "open"]},
            "pretrain: data: a coreset is part of the open set; leave out one of them",
        ),
        (
            {"data": "corset"},
            "pretrain: data: corset is none of target, coreset, open, or a manifest (.parquet)",
        ),
        # figures
        ({"epochs": 0}, "pretrain.epochs=0: must be a whole number from 1, or auto"),
        ({"epochs": "all"}, "pretrain.epochs=all: must be a whole number from 1, or auto"),
        ({"epochs": True}, "pretrain.epochs=true: must be a whole number from 1, or auto"),
        ({"batch_size": 1}, "pretrain.batch_size=1: must be at least 2"),
        ({"learning_rate": 0}, "pretrain.learning_rate=0: must be over 0.0"),
        ({"learning_rate": float("inf")}, "pretrain.learning_rate=inf: must be a finite number"),
        ({"momentum": 1}, "pretrain.momentum=1: must be under 1.0"),
        ({"optimizer": "adam"}, "pretrain.optimizer=adam: must be 'sgd', 'adamw' or 'lars'"),
        (
            {"schedule": "linear"},
            "pretrain.schedule=linear: must be 'cosine', 'step' or 'constant'",
        ),
        ({"precision": "fp16"}, "pretrain.precision=fp16: must be 'auto', 'float32' or 'bf16'"),
        ({"crop_scale": [0.5, 0.2]}, "pretrain: crop_scale: the smaller share comes first"),
        ({"crop_scale": [0, 1]}, "pretrain.crop_scale.0=0: must be over 0.0"),
        ({"crop_scale": [0.2, 1.5]}, "pretrain.crop_scale.1=1.5: must be at most 1.0"),
        ({"crop_scale": 0.5}, "pretrain.crop_scale=0.5: must be a list"),
        ({"workers": 0}, "pretrain.workers=0: must be at least 1"),
        ({"use_gpu": "maybe"}, "pretrain.use_gpu=maybe: must be true or false"),
        # probe
        ({"probe": 3}, "pretrain.probe=3: must be a section of keys"),
        ({"probe": {"train": FOLDER}}, "pretrain.probe.test: missing; set it in the config"),
        (
            {"probe": {"train": FOLDER, "test": {"path": "x"}}},
            "pretrain.probe.test.kind: missing; one of image_folder, webdataset, parquet, url_list",
        ),
        (
            {"probe": {"train": {**FOLDER, "kind": "folder"}, "test": FOLDER}},
            "pretrain.probe.train.kind=folder: no such kind; did you mean image_folder?",
        ),
        (
            {"probe": {"train": FOLDER, "test": FOLDER, "k": 0}},
            "pretrain.probe.k=0: must be at least 1",
        ),
    ],
)
def test_mistakes_of_pretraining(keys: dict[str, Any], message: str) -> None:
    assert error_of(pretrain=keys) == message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "nope"}, f"encoder.pretrain_on_target.method=nope: must be {KNOWN}"),
        (
            {"backbone": "resnet18"},
            "encoder: pretrain_on_target.backbone: set encoder.backbone instead",
        ),
        ({"image_px": 32}, "encoder: pretrain_on_target.image_px: set encoder.image_px instead"),
        (
            {"small_stem": False},
            "encoder: pretrain_on_target.small_stem: set encoder.small_stem instead",
        ),
    ],
)
def test_mistakes_of_a_target_encoder(keys: dict[str, Any], message: str) -> None:
    assert error_of(encoder={"pretrain_on_target": keys}) == message


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            {"pretrain_on_target": {}, "pretrained": True},
            "encoder: set pretrained or pretrain_on_target, not both",
        ),
        (
            {"pretrain_on_target": {}, "checkpoint": "x.pt"},
            "encoder: set checkpoint or pretrain_on_target, not both",
        ),
        (
            {"checkpoint": "x.pt", "pretrained": True},
            "encoder: set pretrained or checkpoint, not both",
        ),
    ],
)
def test_weights_come_from_one_place(encoder: dict[str, Any], message: str) -> None:
    assert error_of(encoder=encoder) == message


PROBE = {"train": FOLDER, "test": FOLDER}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"pretrian": {}}, "pretrian: unknown key; did you mean pretrain?"),
        ({"pretrain": {"metod": 1}}, "pretrain.metod: unknown key; did you mean method?"),
        (
            {"pretrain": {"probe": {**PROBE, "evry": 1}}},
            "pretrain.probe.evry: unknown key; did you mean every?",
        ),
        (
            {"pretrain": {"probe": {"train": FOLDER, "test": {**FOLDER, "pth": "x"}}}},
            "pretrain.probe.test.pth: unknown key; did you mean path?",
        ),
        (
            {"encoder": {"pretrain_on_target": {"metod": "moco"}}},
            "encoder.pretrain_on_target.metod: unknown key; did you mean method?",
        ),
        (
            {"encoder": {"pretrain_on_target": {"probe": {**PROBE, "evry": 3}}}},
            "encoder.pretrain_on_target.probe.evry: unknown key; did you mean every?",
        ),
        (
            {"open": [{"name": "web", "kind": "webdataset", "path": "a", "pth": "b"}]},
            "open.0.pth: unknown key; did you mean path?",
        ),
        ({"target": {**FOLDER, "limt": 3}}, "target.limt: unknown key; did you mean limit?"),
        ({"encoder": {"pretraind": 1}}, "encoder.pretraind: unknown key; did you mean pretrained?"),
        (
            {"pretrain": {"probe": {**PROBE, "zzz": 1}}},
            "pretrain.probe.zzz: unknown key; known here: every, k, test, train",
        ),
    ],
)
def test_misspelt_keys_at_any_depth(sections: dict[str, Any], message: str) -> None:
    """Keys of that section, not of another one."""
    assert error_of(**sections) == message


def test_data_is_no_key_of_a_target_encoder() -> None:
    """It trains on the target alone."""
    message = error_of(encoder={"pretrain_on_target": {"data": ["open"]}})
    assert message.startswith("encoder.pretrain_on_target.data: unknown key; known here: ")
    assert " data," not in message.partition("known here:")[2]
