"""Design rules over the import statements, and files that nothing else would read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from curate import config, settings
from curate.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]

# From what knows most to what knows least: a module imports only from below itself
ORDER = [
    *("cli", "report", "recut", "comparison", "comparison_table", "evaluation", "quality", "run"),
    *("selection", "whiten"),
    *("pretrain", "train_worker", "probe", "trainer"),
    *("optimise", "methods", "evaluate", "loader"),
    *("augment", "views", "checkpoints", "watch", "materialise", "training_set"),
    *("training_plan", "select", "summary", "accounting", "resume", "embed", "parts", "manifest"),
    *("coreset.distributed", "coreset.baselines", "coreset.rounds", "coreset.merge"),
    *("coreset.candidates", "coreset.similarity", "coreset.whitening", "centroids", "encoders"),
    *("backbones", "images"),
    *("plan", "sources", "shards", "session", "progress", "config", "settings", "recipes"),
    *("storage", "errors"),
]
PURE = [
    *("coreset.similarity", "coreset.candidates", "coreset.merge", "coreset.rounds"),
    *(
        "coreset.whitening",
        "centroids",
        "images",
        "recipes",
        "views",
        "augment",
        "optimise",
        "evaluate.knn",
    ),
    *("evaluate.linear", "evaluate.selection"),
    *(f"methods.{name}" for name in ("base", *RECIPES)),
    *(f"report.{name}" for name in ("content", "galleries", "maps", "markup", "page")),
    *("report.plots", "report.projection", "report.results", "report.shell"),
]


def modules() -> dict[str, Path]:
    """Dotted name below `curate` → file."""
    package = ROOT / "curate"
    names = {}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__")
        names[name.rstrip(".")] = path
    return names


def imports_of(path: Path) -> set[str]:
    """Everything that a file imports, at any depth of it, `from a import b` as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def place_of(name: str) -> int:
    """Where in ORDER a module stands, by its longest listed prefix."""
    matches = [entry for entry in ORDER if name == entry or name.startswith(entry + ".")]
    assert matches, f"curate/{name}: has no place in ORDER"
    return ORDER.index(max(matches, key=len))


def test_imports_run_one_way() -> None:
    files = modules()
    wrong = []
    for name, path in files.items():
        if name in ("", "coreset"):
            continue
        for imported in imports_of(path):
            if not imported.startswith("curate."):
                continue
            inner = imported.removeprefix("curate.")
            while inner not in files and "." in inner:
                inner = inner.rpartition(".")[0]
            if inner in files and inner and place_of(inner) < place_of(name):
                wrong.append(f"{name} imports {inner}")
    assert not wrong


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_know_neither_ray_nor_files(name: str) -> None:
    for imported in imports_of(modules()[name]):
        assert imported.split(".")[0] not in ("ray", "fsspec", "pyarrow", "os", "pathlib")
        assert not imported.startswith(("curate.storage", "curate.shards", "curate.session"))


def test_modules_stay_short() -> None:
    long = {n: len(p.read_text().splitlines()) for n, p in modules().items()}
    assert {n: lines for n, lines in long.items() if lines > 420} == {}


def test_cluster_yaml_is_what_the_launcher_takes() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(cluster))
    cluster["available_node_types"]["gpu_worker"]["min_worker"] = 1
    with pytest.raises(Exception, match="min_worker"):
        validate_config(prepare_config(cluster))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_examples_are_valid(path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("OUTPUT", "/output")
    monkeypatch.setenv("LISTS", "/lists")
    load = config.load_comparison if path.name.startswith("compare") else config.load
    assert load(str(path)).open


def test_documented_keys_are_the_keys_there_are() -> None:
    """docs/configuration.md names every setting, and every default that it states is right."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    for section in (
        *(settings.EncoderSettings, settings.ImageSettings, settings.EmbedSettings),
        *(settings.PretrainSettings, settings.ProbeSettings, settings.EvaluateSettings),
    ):
        for name in section.model_fields:
            assert f"`{name}`" in text, name
    comparing = (ROOT / "docs" / "comparison.md").read_text()
    for section in (settings.ComparisonSettings, settings.ArmSettings, settings.TargetSettings):
        for name in section.model_fields:
            assert f"`{name}`" in comparing or name == "kind", name
    coreset = text.partition("## `coreset`")[2]
    for name, field in settings.CoresetSettings.model_fields.items():
        row = next(line for line in coreset.splitlines() if line.startswith(f"| `{name}` |"))
        default = row.split("|")[2].strip().strip("`")
        assert default == ("" if field.default is None else str(field.default)), name
