"""A run's YAML → its settings, with errors that name the key.

target:   {kind: image_folder, path: …}
open:     [{name: imagenet, kind: webdataset, path: …}, …]
encoder:  {backbone: resnet18, checkpoint: …, image_px: 224}
coreset:  {clusters: 100, tau: 0.95}
pretrain: {method: simclr, optimizer: {learning_rate: 0.1}, resources: {workers: 8}}
output:   s3://bucket/run
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from curate import storage
from curate.errors import CurateError, one_line
from curate.settings import (
    KINDS,
    ComparisonSettings,
    ManyRunsSettings,
    RunSettings,
    Settings,
)
from curate.storage import Document

Root = TypeVar("Root", bound=Settings)


def load(path: str, overrides: list[str] | None = None) -> RunSettings:
    """A run's settings, of a YAML with `key=value` overrides and ${VARIABLES}.

    Raises CurateError naming the key, or the file, that is at fault.
    """
    document = _read(path, overrides)
    if "targets" in document and "target" not in document:
        raise CurateError(f"{path}: targets: `curate run` alone takes several; set target")
    return parse(document, path)


def load_runs(path: str, overrides: list[str] | None = None) -> list[RunSettings]:
    """The settings of a run, or of a run for each of the config's `targets`, as `load`."""
    document = _read(path, overrides)
    if "targets" not in document:
        return [parse(document, path)]
    if "target" in document:
        raise CurateError(f"{path}: target and targets: set one of them")
    return validated(ManyRunsSettings, document, path).runs()


def load_comparison(path: str, overrides: list[str] | None = None) -> ComparisonSettings:
    """A comparison's settings, as `load` a run's."""
    return validated(ComparisonSettings, _read(path, overrides), path)


def parse(document: Document, origin: str) -> RunSettings:
    """Validate a document already read, as a run wrote it; `origin` is named in errors. A variable
    that is not set here stays as it is written: on another machine a run can still be looked at."""
    return validated(RunSettings, _interpolate(document, "", needed=False), origin)


_written: dict[str, str] = {}  # a text with its variables filled in → as it was written


def as_written(settings: Settings) -> Document:
    """Settings to be stored: where a path or URI was filled in from ${VARIABLES}, which may be
    secret, with these again. Names and methods stay what they are: no secrets, and needed to read
    the rest."""

    def written(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: written(one) for key, one in value.items()}
        if isinstance(value, list):
            return [written(one) for one in value]
        return _written.get(value, value) if isinstance(value, str) else value

    document: Document = written(settings.model_dump(mode="json"))
    return document


def _read(path: str, overrides: list[str] | None) -> Document:
    fs, place = storage.filesystem(path)
    try:
        # Somebody waits for an answer: not as long as for a run's own files
        data = storage.with_retries(path, lambda: bytes(fs.cat_file(place)))
        document = yaml.safe_load(data.decode())
    except FileNotFoundError:
        raise CurateError(f"{path}: no such config file") from None
    except storage.Unavailable as error:
        raise CurateError(f"{error}; check the path of the config") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CurateError(f"{path}: not readable as YAML: {one_line(error)}") from error
    if not isinstance(document, dict):
        raise CurateError(f"{path}: a config is a mapping with target, open, encoder, … and output")
    for override in overrides or []:
        _apply(document, override)
    filled = _interpolate(document, "")
    # A section with all its lines commented out is a null in YAML
    return {key: value for key, value in filled.items() if value is not None}


def _apply(document: Document, override: str) -> None:
    """`coreset.tau=0.9` into the document; list items go by number: `open.0.limit=100`."""
    key, separator, value = override.partition("=")
    if not separator or not all(key.split(".")):
        raise CurateError(f"{override}: an override is key=value, as in coreset.tau=0.9")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise CurateError(f"{override}: the value is no YAML: {one_line(error, 100)}") from None
    *parents, last = key.split(".")
    place: Any = document
    try:
        for parent in parents:
            if isinstance(place, list):
                place = place[int(parent)]
                continue
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
        place[int(last) if isinstance(place, list) else last] = parsed
    except (ValueError, IndexError, TypeError, AttributeError):
        raise CurateError(f"{override}: the config has no place for {key}") from None


def _interpolate(value: Any, key: str, needed: bool = True) -> Any:
    """needed: whether a variable that is not set is an error."""
    if isinstance(value, dict):
        return {
            k: _interpolate(v, f"{key}.{k}" if key else str(k), needed) for k, v in value.items()
        }
    if isinstance(value, list):
        return [_interpolate(v, f"{key}.{i}", needed) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ and needed:
            raise CurateError(f"{key}: the environment variable {name} is not set; export {name}=…")
        return os.environ.get(name, match.group())

    filled = re.sub(r"\$\{(\w+)\}", variable, value)
    if filled != value and "/" in filled:
        _written[filled] = value
    return filled


def validated(model: type[Root], document: Document, origin: str) -> Root:
    """A section, or a whole config. Raises CurateError, which names the key."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise CurateError(f"{origin}: {_explain(error, model)}") from None


# pydantic puts the branch of a union into an error's place; users wrote no such key
_BRANCHES = {"int", "float", "constrained-int", "constrained-float", "function-wrap"} | set(KINDS)

# pydantic's type of fault → what we say of it, with what pydantic knows in brackets
_FAULTS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "model_type": "must be a section of keys",
    "model_attributes_type": "must be a section of keys",
    "dict_type": "must be a section of keys",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be over {gt}",
    "less_than": "must be under {lt}",
    "less_than_equal": "must be at most {le}",
    "string_pattern_mismatch": "must be letters, digits, '.', '_' and '-', a letter or digit first",
    "too_short": "needs at least {min_length}, has {actual_length}",
    "too_long": "takes at most {max_length}, has {actual_length}",
}


def _explain(error: ValidationError, root: type[Settings]) -> str:
    """The first fault, as `coreset.tau=1.5: …`."""
    fault = error.errors()[0]
    place = [part for part in fault["loc"] if not (isinstance(part, str) and part in _BRANCHES)]
    key = ".".join(str(part) for part in place)
    value = fault["input"]
    sections = _sections_at(place[:-1], root)
    unknown = fault["type"] == "extra_forbidden"
    now = _moved_to(place, sections)
    if now and (unknown or isinstance(value, str)):  # text, as in `optimizer: sgd` of before
        return f"{key}: moved; set {now}"
    if unknown:
        known = sorted({name for section in sections for name in section.model_fields})
        return f"{key}: unknown key; {_likeliest(str(place[-1]), known)}"
    if fault["type"] == "missing":
        return f"{key}: missing; set it in the config"
    if fault["type"] == "union_tag_not_found":
        return f"{key}.kind: missing; one of {', '.join(KINDS)}"
    if fault["type"] == "union_tag_invalid":
        return f"{key}.kind={value['kind']}: no such kind; {_likeliest(str(value['kind']), KINDS)}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] in _FAULTS:
        message = _FAULTS[fault["type"]].format(**fault.get("ctx", {}))
    if isinstance(value, str | int | float | bool | None):
        written = {None: "null", True: "true", False: "false"}
        shown = written[value] if value is None or isinstance(value, bool) else value
        return f"{key}={shown}: {message}"
    return f"{key}: {message}" if key else message


def _sections_at(place: list[Any], root: type[Settings]) -> list[type[Settings]]:
    """Those that may stand there; several where a source may be of any kind."""
    models = [root]
    for part in place:
        # Numbers are places in a list, and other names a user's own
        if any(part in model.model_fields for model in models):
            inside = [m.model_fields[part].annotation for m in models if part in m.model_fields]
            models = [model for annotation in inside for model in _models_in(annotation)]
    return models


def _moved_to(place: list[Any], sections: list[type[Settings]]) -> str | None:
    """The key of now, for one of before."""
    for section in sections:
        if place and place[-1] in section.moved:
            return ".".join(str(part) for part in [*place[:-1], section.moved[place[-1]]])
    return None


def _models_in(annotation: Any) -> Iterator[type[Settings]]:
    """The sections that a type allows: itself, or inside Optional, list and unions."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _likeliest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
