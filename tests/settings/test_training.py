"""The keys of pretraining: what is taken, and that each mistake is one line that names its key."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from curate.errors import CurateError
from curate.settings import ImageFolderSettings, OptimizerSettings, PretrainSettings, RunSettings
from curate.settings import load as config
from curate.settings.recipes import RECIPES
from curate.settings.training import MOVED

FOLDER = {"kind": "image_folder", "path": "images"}
GOOD: dict[str, Any] = {
    "target": FOLDER,
    "open": [{"name": "web", "kind": "webdataset", "path": "a/*.tar"}],
    "output": "run",
}
KNOWN = (
    "'simclr', 'moco', 'byol', 'simsiam', 'swav', 'dino', 'dinov2', 'mae', 'distill', 'drlim' or "
    "'exemplar'"
)


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
    assert parse().pretrain is None and parse().encoder.pretrain is None
    settings = pretrain()
    assert (settings.method, settings.preset) == ("simclr", None)
    assert settings.data == ["target", "coreset"]


@pytest.mark.parametrize("method", RECIPES)
def test_every_recipes_own_options_are_taken(method: str) -> None:
    for preset, recipe in RECIPES[method].items():
        teacher = {"backbone": "resnet18"} if method == "distill" else None
        settings = pretrain(method=method, preset=preset, options=recipe.options, teacher=teacher)
        assert settings.options == recipe.options
        assert list(map(type, settings.options.values())) == list(
            map(type, recipe.options.values())
        ), "1, 1.0 and true are three things"


def test_beginnings() -> None:
    assert pretrain().init is None
    assert pretrain(init="timm") == pretrain(init={"weights": "timm"})
    adapted = pretrain(init={"weights": "e.pt", "lora_rank": 8, "lora_alpha": 16}).init
    assert adapted is not None and (adapted.layer_decay, adapted.trained_blocks) == (1, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "pretrain.init.weights: missing; set it in the config"),
        ({"weights": "e.pt", "lora_alpha": 8}, "pretrain.init: lora_alpha: set lora_rank as well"),
        ({"weights": "e.pt", "layer_decay": 0}, "pretrain.init.layer_decay=0: must be over 0.0"),
        ({"weights": "e.pt", "layer_decay": 2}, "pretrain.init.layer_decay=2: must be at most 1"),
        (
            {"weights": "e.pt", "trained_blocks": 0},
            "pretrain.init.trained_blocks=0: must be at least 1",
        ),
        ({"weights": "e.pt", "rank": 4}, "pretrain.init.rank: unknown key"),
    ],
)
def test_mistakes_of_a_beginning(given: dict[str, Any], said: str) -> None:
    assert error_of(pretrain={"init": given}).startswith(said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "distill"}, "pretrain: teacher: distill needs one"),
        ({"teacher": {"backbone": "resnet50"}}, "pretrain: teacher: of distill alone"),
        (
            {"method": "distill", "teacher": {"image_px": 32}},
            "pretrain.teacher: backbone: set it, or weights to an encoder that was made here",
        ),
    ],
)
def test_mistakes_of_a_teacher(given: dict[str, Any], said: str) -> None:
    assert error_of(pretrain=given) == said


def test_sets_of_an_encoder() -> None:
    own = parse(encoder={"pretrain": {}}).encoder.pretrain
    assert own is not None and (own.data, own.open_sample) == (["target"], None)
    given = {"data": ["target", "open"], "open_sample": 50_000}
    own = parse(encoder={"pretrain": given}).encoder.pretrain
    assert own is not None and (own.data, own.open_sample) == (["target", "open"], 50_000)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"data": ["target", "coreset"]},
            "encoder.pretrain: data: coreset is neither target nor open",
        ),
        ({"open_sample": 9}, "encoder.pretrain: open_sample=9: of open, which data does not name"),
        ({"data": "open", "open_sample": 0}, "encoder.pretrain.open_sample=0: must be at least 1"),
    ],
)
def test_mistakes_of_an_encoders_sets(given: dict[str, Any], said: str) -> None:
    assert error_of(encoder={"pretrain": given}) == said


def test_the_encoders_training_of_before_names_the_new_key() -> None:
    given = {"pretrain_on_target": {"method": "moco"}}
    assert error_of(encoder=given) == "encoder.pretrain_on_target: moved; set encoder.pretrain"


def test_shares() -> None:
    both = pretrain(data={"target": 0.3, "coreset": 0.7})
    assert (both.data, both.shares) == (["target", "coreset"], [0.3, 0.7])
    assert both == pretrain(data=["target", "coreset"], shares=[0.3, 0.7])
    assert pretrain().shares is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": {"target": 0.3, "coreset": 0.6}}, "must be two that make 1 together"),
        ({"data": {"target": 1.0}}, "shares: are of target and one other set in data"),
        ({"data": {"open": 0.5, "x.parquet": 0.5}}, "shares: are of target and one other set"),
        ({"data": {"target": 0, "open": 1}}, "pretrain.shares.0=0: must be over 0"),
        ({"data": {"target": 0.5, "open": 0.5}, "shares": [0.5, 0.5]}, "not both"),
        ({"data": ["target"], "shares": [1.0]}, "shares: are of target and one other set"),
    ],
)
def test_shares_that_cannot_be(given: dict[str, Any], said: str) -> None:
    assert said in error_of(pretrain=given)


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
        encoder={"image_px": 64, "pretrain": {"method": "moco", "epochs": "auto"}}
    ).encoder
    assert encoder.pretrain is not None
    assert encoder.pretrain.method == "moco"


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
        ({"optimizer": 3}, "pretrain.optimizer=3: must be a section of keys"),
        ({"resources": "many"}, "pretrain.resources=many: must be a section of keys"),
        (
            {"precision": "fp8"},
            "pretrain.precision=fp8: must be 'auto', 'float32', 'bf16' or 'fp16'",
        ),
        ({"epochs": 2, "steps": 9}, "pretrain: set epochs or steps, not both"),
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
    ("group", "keys", "message"),
    [
        ("optimizer", {"learning_rate": 0}, ".learning_rate=0: must be over 0.0"),
        (
            "optimizer",
            {"learning_rate": float("inf")},
            ".learning_rate=inf: must be a finite number",
        ),
        ("optimizer", {"learning_rate": "low"}, ".learning_rate=low: must be a number"),
        ("optimizer", {"weight_decay": -1}, ".weight_decay=-1: must be at least 0.0"),
        ("optimizer", {"weight_decay_end": -1}, ".weight_decay_end=-1: must be at least 0.0"),
        ("optimizer", {"momentum": 1}, ".momentum=1: must be under 1.0"),
        ("optimizer", {"adam_beta2": 1}, ".adam_beta2=1: must be under 1.0"),
        ("optimizer", {"nesterov": "often"}, ".nesterov=often: must be true or false"),
        ("optimizer", {"name": "adam"}, ".name=adam: must be 'sgd', 'adamw' or 'lars'"),
        (
            *("optimizer", {"schedule": "linear"}),
            ".schedule=linear: must be 'cosine', 'step' or 'constant'",
        ),
        ("optimizer", {"warmup_epochs": -1}, ".warmup_epochs=-1: must be at least 0.0"),
        ("optimizer", {"warmup_steps": 0.5}, ".warmup_steps=0.5: must be a whole number"),
        (
            *("optimizer", {"warmup_steps": 5, "warmup_epochs": 0}),
            ": set warmup_epochs or warmup_steps, not both",
        ),
        (
            *("optimizer", {"final_learning_rate_share": 1}),
            ".final_learning_rate_share=1: must be under 1.0",
        ),
        ("optimizer", {"clip_gradient": 0}, ".clip_gradient=0: must be over 0.0"),
        ("optimizer", {"momentun": 0}, ".momentun: unknown key; did you mean momentum?"),
        ("views", {"crop_scale": [0.5, 0.2]}, ": crop_scale: the smaller share comes first"),
        ("views", {"crop_scale": [0, 1]}, ".crop_scale.0=0: must be over 0.0"),
        ("views", {"crop_scale": [0.2, 1.5]}, ".crop_scale.1=1.5: must be at most 1.0"),
        ("views", {"crop_scale": 0.5}, ".crop_scale=0.5: must be a list"),
        ("views", {"colour_strength": 2}, ".colour_strength=2: must be at most 1.25"),
        ("resources", {"workers": 0}, ".workers=0: must be at least 1"),
        ("resources", {"use_gpu": "maybe"}, ".use_gpu=maybe: must be true or false"),
        ("checkpoints", {"every": 0}, ".every=0: must be at least 1"),
        ("checkpoints", {"zzz": 0}, ".zzz: unknown key; known here: best, every, keep"),
    ],
)
def test_mistakes_in_a_group(group: str, keys: dict[str, Any], message: str) -> None:
    """Of `pretrain` and of the target encoder's training alike."""
    assert error_of(pretrain={group: keys}) == f"pretrain.{group}{message}"
    encoder = {"pretrain": {group: keys}}
    assert error_of(encoder=encoder) == f"encoder.pretrain.{group}{message}"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"adam_beta2": 0.9}, "adam_beta2: of adamw alone, and not of lars"),
        ({"adam_beta2": 0.9, "name": "sgd"}, "adam_beta2: of adamw alone, and not of sgd"),
        ({"nesterov": True}, "nesterov: of sgd alone, and not of lars"),
        (
            {"final_learning_rate_share": 0.1, "schedule": "step"},
            "final_learning_rate_share: of cosine alone, and not of step",
        ),
    ],
)
def test_figures_that_would_change_nothing(keys: dict[str, Any], message: str) -> None:
    """SimCLR's recipe takes LARS, and a cosine."""
    assert error_of(pretrain={"optimizer": keys}) == f"pretrain: optimizer.{message}"


def test_an_empty_group_is_its_defaults() -> None:
    """What a group with all its lines commented out is in YAML."""
    groups = ("optimizer", "views", "resources", "checkpoints")
    assert pretrain(**dict.fromkeys(groups)) == pretrain()


# Keys of before, and a value that each took
FLAT: dict[str, Any] = {
    **{"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0, "weight_decay_end": 0.4},
    **{"momentum": 0.9, "warmup_epochs": 5, "warmup_steps": 50, "schedule": "cosine"},
    **{"clip_gradient": 3.0, "crop_scale": [0.2, 1.0], "colour_strength": 0.5, "local_views": 2},
    **{"workers": 2, "use_gpu": False, "loader_workers": 0, "restarts": 5},
    **{"checkpoint_every": 100, "keep_checkpoints": 1},
}


@pytest.mark.parametrize("key", FLAT)
def test_flat_keys_of_before_name_the_new_ones(key: str, tmp_path: Path) -> None:
    """In a file, in either section, and on the command line; and the new key is there."""
    now = MOVED[key]
    assert error_of(pretrain={key: FLAT[key]}) == f"pretrain.{key}: moved; set pretrain.{now}"
    section = "encoder.pretrain"
    message = error_of(encoder={"pretrain": {key: FLAT[key]}})
    assert message == f"{section}.{key}: moved; set {section}.{now}"

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "pretrain": {"optimizer": {"momentum": 0.5}}}))
    with pytest.raises(CurateError) as error:
        config.load(str(path), [f"pretrain.{key}={json.dumps(FLAT[key])}"])
    assert str(error.value) == f"{path}: pretrain.{key}: moved; set pretrain.{now}"
    settings = config.load(str(path), [f"pretrain.{now}={json.dumps(FLAT[key])}"])
    group, _, name = now.partition(".")
    value = getattr(getattr(settings.pretrain, group), name)
    assert (list(value) if isinstance(value, tuple) else value) == FLAT[key]


def test_every_moved_key_is_tried() -> None:
    assert set(FLAT) == set(MOVED)


def test_recipes_keep_the_limits_that_users_must() -> None:
    """The types and limits stand at `Optimizer`, which does not check them by itself."""
    for presets in RECIPES.values():
        for recipe in presets.values():
            figures = asdict(recipe.optimizer)
            assert OptimizerSettings(**figures).model_dump(exclude={"warmup_steps"}) == figures


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "nope"}, f"encoder.pretrain.method=nope: must be {KNOWN}"),
        (
            {"backbone": "resnet18"},
            "encoder: pretrain.backbone: set encoder.backbone instead",
        ),
        ({"image_px": 32}, "encoder: pretrain.image_px: set encoder.image_px instead"),
        (
            {"small_stem": False},
            "encoder: pretrain.small_stem: set encoder.small_stem instead",
        ),
    ],
)
def test_mistakes_of_a_target_encoder(keys: dict[str, Any], message: str) -> None:
    assert error_of(encoder={"pretrain": keys}) == message


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            {"pretrain": {}, "pretrained": True},
            "encoder: set pretrained or pretrain, not both",
        ),
        (
            {"pretrain": {}, "checkpoint": "x.pt"},
            "encoder: set checkpoint or pretrain, not both",
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
            {"encoder": {"pretrain": {"metod": "moco"}}},
            "encoder.pretrain.metod: unknown key; did you mean method?",
        ),
        (
            {"encoder": {"pretrain": {"probe": {**PROBE, "evry": 3}}}},
            "encoder.pretrain.probe.evry: unknown key; did you mean every?",
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
