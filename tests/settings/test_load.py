"""Configurations: what is read, and that each mistake is one line that names the key."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from curate import storage
from curate.cli import _parser, main, parsed
from curate.errors import CurateError
from curate.runfiles.run import Run
from curate.settings import (
    CoresetSettings,
    ImageFolderSettings,
    ParquetSettings,
    RunSettings,
    WebDatasetSettings,
)
from curate.settings import load as config

GOOD: dict[str, Any] = {
    "target": {"kind": "image_folder", "path": "target"},
    "open": [
        {"name": "web", "kind": "webdataset", "path": "a/*.tar"},
        {"name": "tables", "kind": "parquet", "path": ["b.parquet", "c.parquet"]},
    ],
    "output": "run",
}


def with_key(key: str, value: Any) -> dict[str, Any]:
    """GOOD with one key set, or taken away where the value is `...`."""
    document: Any = yaml.safe_load(yaml.safe_dump(GOOD))
    *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    place = document
    for parent in parents:
        place = place[parent] if isinstance(place, list) else place.setdefault(parent, {})
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


def here(*paths: str) -> list[str]:
    return [f"{os.getcwd()}/{path}" for path in paths]


def load(tmp_path: Path, document: Any, *overrides: str) -> RunSettings:
    path = tmp_path / "run.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return config.load(str(path), list(overrides))


def error_of(tmp_path: Path, document: Any, *overrides: str) -> str:
    with pytest.raises(CurateError) as error:
        load(tmp_path, document, *overrides)
    message = str(error.value)
    assert "\n" not in message and "pydantic" not in message and "Input should" not in message
    return message.removeprefix(f"{tmp_path / 'run.yaml'}: ")


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD)
    assert settings.target.name == "target"
    assert [type(source) for source in settings.open] == [WebDatasetSettings, ParquetSettings]
    assert settings.open[0].path == here("a/*.tar")  # type: ignore[union-attr]
    assert settings.open[1].image_column == "image"  # type: ignore[union-attr]
    coreset = settings.coreset
    assert (coreset.clusters, coreset.tau, coreset.reference_round) == (100, 0.95, 1)
    assert coreset.budget is None and settings.encoder.backbone == "resnet50"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        # unknown keys
        ("coresett", {}, "coresett: unknown key; did you mean coreset?"),
        ("coreset.taw", 0.9, "coreset.taw: unknown key; did you mean tau?"),
        ("encoder.zzz", 1, "encoder.zzz: unknown key; known here: backbone, bits, channels, "),
        ("open.0.limits", 5, "open.0.limits: unknown key; did you mean limit?"),
        ("open.1.image_col", "x", "open.1.image_col: unknown key; did you mean image_column?"),
        ("target.pth", "x", "target.pth: unknown key; did you mean path?"),
        # missing keys
        ("target", ..., "target: missing; set it in the config"),
        ("output", ..., "output: missing; set it in the config"),
        ("output", None, "output: missing; set it in the config"),
        ("open.0.name", ..., "open.0.name: missing; set it in the config"),
        ("open.1.path", ..., "open.1.path: missing; set it in the config"),
        ("open.0.kind", ..., "open.0.kind: missing; one of image_folder, webdataset, parquet"),
        # unknown kinds and methods
        ("open.0.kind", "webdatset", "open.0.kind=webdatset: no such kind; did you mean webd"),
        ("target.kind", "zip", "target.kind=zip: no such kind; known here: image_folder, "),
        ("coreset.method", "best", "coreset.method=best: must be 'simcore', 'ratio', 'gate', "),
        # wrong types
        ("coreset.clusters", "many", "coreset.clusters=many: must be a whole number"),
        ("coreset.clusters", 1.5, "coreset.clusters=1.5: must be a whole number"),
        ("coreset.tau", "high", "coreset.tau=high: must be a number"),
        ("coreset.tau", float("nan"), "coreset.tau=nan: must be a finite number"),
        ("encoder.pretrained", "perhaps", "encoder.pretrained=perhaps: must be true or false"),
        ("coreset", 5, "coreset=5: must be a section of keys"),
        ("coreset", [1], "coreset: must be a section of keys"),
        ("open", "web", "open=web: must be a list"),
        ("open.0", "web", "open.0=web: must be a section of keys"),
        ("target", ["a"], "target: must be a section of keys"),
        ("open.0.path", 7, "open.0.path=7: must be a list"),
        ("open.0.path", ["a", 7], "open.0.path.1=7: must be text"),
        ("output", True, "output=true: must be text"),
        ("encoder.mean", 0.5, "encoder.mean=0.5: must be a list"),
        ("encoder.mean", [0.5], "encoder.mean: of 1, and images.channels=3; set a figure for each"),
        ("coreset.labels", "cat", "coreset.labels=cat: must be a list"),
        ("embed.device", "tpu", "embed.device=tpu: must be 'auto', 'cpu' or 'gpu'"),
        # out of range
        ("coreset.clusters", 0, "coreset.clusters=0: must be at least 1"),
        ("coreset.tau", 1.5, "coreset.tau=1.5: must be at most 1"),
        ("coreset.tau", -0.1, "coreset.tau=-0.1: must be at least 0"),
        ("encoder.crop_fraction", 0, "encoder.crop_fraction=0: must be over 0"),
        ("encoder.std", [1, 0, 1], "encoder.std.1=0: must be over 0"),
        ("open.0.limit", 0, "open.0.limit=0: must be at least 1"),
        ("open.0.path", [], "open.0.path: needs at least 1, has 0"),
        ("open.0.path", "", "open.0.path.0=: must not be empty"),
        ("output", "", "output=: must not be empty"),
        ("open", [], "open: needs at least 1, has 0"),
        ("open.0.name", "a/b", "open.0.name=a/b: must be letters, digits, "),
        # the budget, a count or a fraction
        *(
            ("coreset.budget", value, f"coreset.budget={shown}: must be a count (0, 1, 2 …) or a ")
            for value, shown in [
                (1.5, "1.5"),
                (-1, "-1"),
                (-0.5, "-0.5"),
                ("half", "half"),
                (True, "true"),
            ]
        ),
        ("coreset.budget_times_target", 0, "coreset.budget_times_target=0: must be over 0"),
        # keys that must agree
        ("open.1.name", "web", "open: two sources are named 'web'; give each its own name"),
        (
            "encoder",
            {"pretrained": True, "checkpoint": "x.pt"},
            "encoder: set pretrained or checkpoint, not both",
        ),
        ("coreset.method", "oracle", "coreset: method oracle needs a list of labels"),
        ("coreset.method", "random", "coreset: method random needs a budget"),
        ("coreset.method", "gate", "coreset: method gate needs a budget"),
        ("coreset.budget", "auto", "coreset: budget auto is for methods ratio, gate and resample"),
        ("coreset.labels", ["a"], "coreset: labels are for method oracle, not simcore"),
    ],
)
def test_mistakes(tmp_path: Path, key: str, value: Any, message: str) -> None:
    assert error_of(tmp_path, with_key(key, value)).startswith(message)


@pytest.mark.parametrize(
    ("budget", "expected"), [(0, 0), (1, 1), (1.0, 1.0), (0.1, 0.1), ("5", 5), ("0.5", 0.5)]
)
def test_budget_is_a_count_or_a_fraction(tmp_path: Path, budget: Any, expected: float) -> None:
    got = load(tmp_path, with_key("coreset.budget", budget)).coreset.budget
    assert got == expected and type(got) is type(expected)


def test_labels_may_be_numbers(tmp_path: Path) -> None:
    document = with_key("coreset", {"method": "oracle", "labels": [1, "cat"]})
    assert load(tmp_path, document).coreset.labels == ["1", "cat"]


def test_an_empty_section_is_its_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path, with_key("coreset", None))
    assert settings == load(tmp_path, GOOD)
    assert load(tmp_path, with_key("coreset", None), "coreset.tau=0.5").coreset.tau == 0.5


# Files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target: [unclosed", "not readable as YAML: "),
        ("a: b: c", "not readable as YAML: mapping values are not allowed here"),
        ("\tindented: 1", "not readable as YAML: "),
        ("", "a config is a mapping with target, open, encoder, … and output"),
        ("- a\n- b\n", "a config is a mapping"),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML: "),
    ],
)
def test_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    assert error_of(tmp_path, text).startswith(message)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=r"none\.yaml: no such config file"):
        config.load(str(tmp_path / "none.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CurateError, match=r"binary\.yaml: not readable as YAML"):
        config.load(str(tmp_path / "binary.yaml"))


def test_on_another_filesystem() -> None:
    storage.write_bytes("memory://configs/run.yaml", yaml.safe_dump(GOOD).encode())
    loaded = config.load("memory://configs/run.yaml")
    assert loaded.output == str(Path.cwd() / "run")  # one place, wherever a worker stands
    assert config.load("memory://configs/run.yaml", ["output=s3://b/r"]).output == "s3://b/r"


# Overrides and variables


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("coreset.tau=0.5", lambda s: s.coreset.tau, 0.5),
        ("coreset.tau=null", lambda s: s.coreset.tau, None),
        ("coreset.tau=1e-1", lambda s: s.coreset.tau, 0.1),
        ("coreset.budget=0.25", lambda s: s.coreset.budget, 0.25),
        ("open.0.limit=5", lambda s: s.open[0].limit, 5),
        ("open.1.path.0=z.parquet", lambda s: s.open[1].path, here("z.parquet", "c.parquet")),
        ("open.1.path=[x, y]", lambda s: s.open[1].path, here("x", "y")),
        ("output=s3://bucket/a=b", lambda s: s.output, "s3://bucket/a=b"),
        ("embed.unit_images=7", lambda s: s.embed.unit_images, 7),
        ("target.limit=3", lambda s: s.target.limit, 3),
    ],
)
def test_overrides(tmp_path: Path, override: str, read: Any, expected: Any) -> None:
    assert read(load(tmp_path, GOOD, override)) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("coreset.tau", "coreset.tau: an override is key=value, as in coreset.tau=0.9"),
        ("=5", "=5: an override is key=value"),
        ("coreset..tau=5", "coreset..tau=5: an override is key=value"),
        ("open.7.limit=5", "open.7.limit=5: the config has no place for open.7.limit"),
        ("open.web.limit=5", "open.web.limit=5: the config has no place for open.web.limit"),
        ("output.dir=5", "output.dir=5: the config has no place for output.dir"),
        ("coreset.labels=[a", "coreset.labels=[a: the value is no YAML: "),
        ("coreset.taw=5", "coreset.taw: unknown key; did you mean tau?"),
        ("coreset.tau=2", "coreset.tau=2: must be at most 1"),
        ("open.0.limit=x", "open.0.limit=x: must be a whole number"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, message: str) -> None:
    assert error_of(tmp_path, GOOD, override).startswith(message)


def test_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATE_DATA", "/data")
    monkeypatch.setenv("CURATE_LIMIT", "12")
    document = with_key("open.1.path", ["${CURATE_DATA}/x", "${CURATE_DATA}${CURATE_DATA}"])
    document["open"][1]["limit"] = "${CURATE_LIMIT}"
    source = load(tmp_path, document).open[1]
    assert source.path == ["/data/x", "/data/data"] and source.limit == 12
    monkeypatch.delenv("CURATE_DATA")
    assert re.match(
        r"open\.1\.path\.0: the environment variable CURATE_DATA is not set; export CURATE_DATA=…",
        error_of(tmp_path, document),
    )
    assert load(tmp_path, document, "open.1.path=y").open[1].path == here("y")


SECRET = "https://user:${CURATE_PASSWORD}@h/list.txt?token=${CURATE_TOKEN}"


def test_what_is_stored_has_the_variables_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PASSWORD", "TOKEN", "NAME"):
        monkeypatch.setenv(f"CURATE_{name}", f"of-{name.lower()}")
    monkeypatch.setenv("CURATE_DATA", "s3://bucket")
    document = with_key("open.0.path", [SECRET, "plain/*.tar"])
    document["open"][1]["name"] = "${CURATE_NAME}"
    document["output"] = "${CURATE_DATA}/run"
    settings = load(tmp_path, document)
    assert settings.open[0].path[0] == "https://user:of-password@h/list.txt?token=of-token"
    # Also of a section that was put into other settings
    copy = settings.model_copy(update={"target": settings.open[0]})
    written = config.as_written(copy)
    assert written["open"][0]["path"] == written["target"]["path"] == [SECRET, *here("plain/*.tar")]
    assert written["output"] == "${CURATE_DATA}/run"
    assert written["open"][1]["name"] == "of-name", "needed to read the rest"
    assert "of-password" not in yaml.safe_dump(written)

    again = config.parse(written, "test")
    assert again == copy and config.as_written(again) == written
    monkeypatch.delenv("CURATE_TOKEN")
    there = config.parse(written, "test")
    assert there.open[0].path[0] == "https://user:of-password@h/list.txt?token=${CURATE_TOKEN}"


def test_a_run_keeps_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATE_DATA", str(tmp_path / "private"))
    for name in ("target", "open"):
        storage.write_bytes(str(tmp_path / "private" / name / "a.jpg"), b"")
    document = {
        "target": {"kind": "image_folder", "path": "${CURATE_DATA}/target"},
        "open": [{"name": "o", "kind": "image_folder", "path": "${CURATE_DATA}/open"}],
        "output": str(tmp_path / "run"),
    }
    settings = load(tmp_path, document)
    Run.begin(settings, {})
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "${CURATE_DATA}/open" in text and "private" not in text
    assert Run.open(settings.output).settings == settings
    monkeypatch.delenv("CURATE_DATA")
    target = Run.open(settings.output).settings.target
    assert isinstance(target, ImageFolderSettings) and target.path == "${CURATE_DATA}/target"


def test_lines_of_a_command_have_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "READ_PATIENCE_S", 0.1)
    assert main(["run", "http://user:hidden@127.0.0.1:9/run.yaml?token=hidden"]) == 1
    printed = capsys.readouterr().err
    assert "http://127.0.0.1:9/run.yaml?token=: " in printed and "hidden" not in printed
    gone = f"{tmp_path}/https://user:hidden@h/run.yaml"
    assert main(["run", gone]) == 1
    assert "hidden" not in capsys.readouterr().err


def test_overrides_stand_anywhere_among_the_options() -> None:
    arguments = ["run", "a.yaml", "x.y=1", "--fresh", "z=2", "--debug", "w=3"]
    options = parsed(_parser(), arguments)
    assert options.overrides == ["x.y=1", "z=2", "w=3"] and options.fresh and options.debug


@pytest.mark.parametrize(
    "arguments",
    [["run", "a.yaml", "--frsh"], ["run", "a.yaml", "--fresh", "z"], ["report", "a", "z=2"]],
)
def test_arguments_that_nobody_knows(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(_parser(), arguments)
    assert ended.value.code == 2
    assert "unrecognized arguments: " + arguments[-1] in capsys.readouterr().err


def test_a_selection_as_the_authors_had_it() -> None:
    """What is given goes before it; with a limit of one's own, theirs is none."""
    usual = CoresetSettings(preset="authors")
    figures = (usual.clusters, usual.tau, usual.reference_round, usual.budget_times_target)
    assert figures == (100, 0.95, 20, 50) and usual.budget is None
    own = CoresetSettings(preset="authors", tau=None, budget=0.05)
    assert (own.tau, own.reference_round, own.budget, own.budget_times_target) == (
        *(None, 20, 0.05),
        None,
    )
    assert CoresetSettings.model_validate(own.model_dump()) == own
    assert CoresetSettings().reference_round == 1
