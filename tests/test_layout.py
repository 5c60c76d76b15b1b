"""Design rules over the import statements, and files that nothing else would read."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from curate import settings

ROOT = Path(__file__).resolve().parents[1]

# The house, from the ground up: a package imports from itself and from earlier names alone
ORDER = [
    *(
        "privacy",
        "errors",
        "names",
        "int8",
        "faults",
        "disk",
        "filesystems",
        "progress",
        "storage",
        "web",
        "keyspace",
        "listing",
        "cluster",
        "settings",
        "headers",
        "images",
        "sources",
    ),
    "runfiles",
    *(
        "embedding",
        "coreset",
        "methods",
        "dataset",
        "export",
        "evaluate",
        "pretraining",
        "pipeline",
        "forecast",
    ),
    *("comparison", "report", "options", "cli"),
]
# No Ray and no files: arrays in, arrays out. A folder stands for all of its files.
PURE = [
    *(
        f"coreset.{n}"
        for n in ("similarity", "lead", "candidates", "merge", "lists", "rounds", "best")
    ),
    *(
        "coreset.allowed",
        "settings.where",
        "coreset.quotas",
        "coreset.near",
        "coreset.walks",
        "coreset.ratio",
        "coreset.figures",
    ),
    *(
        "coreset.centroids",
        "coreset.whitening",
        "coreset.quality",
        "int8",
        "headers",
        "images",
        "names",
        "keyspace",
        "settings.recipe",
        "settings.recipes",
        "methods",
    ),
    *(
        "dataset.views",
        "dataset.augment",
        "pretraining.order",
        "pretraining.optimise",
        "pretraining.adapt",
        "pretraining.accumulate",
        "dataset.cut",
        "pretraining.quality",
    ),
    *(*(f"evaluate.{n}" for n in ("accuracy", "logistic", "neighbours")), "comparison.table"),
    *("report.content", "coreset.projection", "report.pages"),
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


def own_imports(name: str, path: Path) -> set[str]:
    """Modules of `curate` that a module imports, itself left out."""
    files = modules()
    found = set()
    for imported in imports_of(path):
        inner = imported.removeprefix("curate.")
        while inner != imported and inner not in files and "." in inner:
            inner = inner.rpartition(".")[0]
        if inner != imported and inner in files and inner != name:
            found.add(inner)
    return found


def test_packages_import_one_way() -> None:
    wrong = []
    for name, path in modules().items():
        package = name.split(".")[0]
        if not package:
            continue
        assert package in ORDER, f"curate/{package}: has no place in ORDER"
        for inner in own_imports(name, path):
            if ORDER.index(inner.split(".")[0]) > ORDER.index(package):
                wrong.append(f"{name} imports {inner}")
    assert not wrong


def test_no_two_modules_import_each_other() -> None:
    """Inside of a package too: each can be read after those that it imports."""
    above = {name: own_imports(name, path) for name, path in modules().items()}
    while above:
        free = {name for name, needs in above.items() if not needs & above.keys()}
        assert free, f"a circle among {sorted(above)}"
        above = {name: needs for name, needs in above.items() if name not in free}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_know_neither_ray_nor_files(name: str) -> None:
    within = {n: p for n, p in modules().items() if n == name or n.startswith(name + ".")}
    assert within
    for path in within.values():
        for imported in imports_of(path):
            assert imported.split(".")[0] not in ("ray", "fsspec", "pyarrow", "os", "pathlib")
            assert not imported.startswith(("curate.storage", "curate.runfiles", "curate.cluster"))


FILE_NAME = re.compile(r"[\w.{}:-]*\w\.(json|jsonl|yaml|parquet|npy|safetensors|md|arrow)")


def strings_of(path: Path) -> set[str]:
    """String literals of a module, those in f-strings with {} for what is filled in; no docstrings
    and no errors' texts."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "{}" for p in node.values]
            found.add("".join(str(part) for part in parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_each_file_name_under_an_output_is_in_one_module() -> None:
    owners: dict[str, set[str]] = {}
    for name, path in modules().items():
        for text in strings_of(path):
            if FILE_NAME.fullmatch(text):
                owners.setdefault(text, set()).add(name)
    assert {"coreset.parquet", "config.yaml", "encoder.safetensors"} <= owners.keys()
    assert {text: names for text, names in owners.items() if len(names) > 1} == {}
    assert owners["coreset.parquet"] == {"runfiles.files"}


def test_modules_and_functions_stay_short() -> None:
    for name, path in modules().items():
        text = path.read_text()
        assert len(text.splitlines()) <= 320, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= 60, f"{name}.{node.name}"


def test_documented_keys_are_the_keys_there_are() -> None:
    """docs/configuration.md names every setting, and every default that it states is right."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    for section in (
        *(settings.EncoderSettings, settings.ImageSettings, settings.EmbedSettings),
        *(settings.PretrainSettings, settings.ProbeSettings, settings.EvaluateSettings),
    ):
        for name in section.model_fields:
            assert f"`{name}`" in text, name
    fields = settings.TrainingSettings.model_fields.items()
    groups = {n: f.default for n, f in fields if isinstance(f.default, settings.Settings)}
    assert groups.keys() == {"optimizer", "views", "resources", "dataset", "checkpoints"}
    for group, defaults in groups.items():
        table = text.partition(f"\n### `{group}`")[2].partition("\n#")[0]
        cells = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
        stated = {row[1].strip(" `"): row[2].strip(" `") for row in cells}
        assert stated.keys() == type(defaults).model_fields.keys(), group
        for name, default in defaults:
            said = str(default).lower() if isinstance(default, bool) else str(default)
            assert default is None or stated[name] == said, name
    comparing = (ROOT / "docs" / "comparison.md").read_text()
    for section in (settings.ComparisonSettings, settings.ArmSettings, settings.TargetSettings):
        for name in section.model_fields:
            assert f"`{name}`" in comparing or name == "kind", name
    coreset = text.partition("## `coreset`")[2]
    for name, field in settings.CoresetSettings.model_fields.items():
        row = next(line for line in coreset.splitlines() if line.startswith(f"| `{name}` |"))
        default = row.split("|")[2].strip().strip("`")
        assert default == ("" if field.default is None else str(field.default)), name
