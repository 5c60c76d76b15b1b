"""What a thing was made from, written beside it: with equal inputs it need not be made again.

A memo is a JSON or YAML file with `made_from`, and whatever else its writer wants to find again. It
is written last: where it is, what it speaks of is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from curate import __version__, storage
from curate.errors import CurateError, one_line
from curate.storage import Document

LAYOUT = 3  # of the files under an output; a version that moves them counts on
OTHER_OUTPUT = "Set another output, or"
START_OVER = "start over with --fresh"

Inputs = Document  # JSON: settings, digests, figures


@dataclass(frozen=True)
class Memo:
    uri: str

    def read(self) -> Document | None:
        """None where there is none. Raises CurateError for a file that is none."""
        if not storage.exists(self.uri):
            return None
        try:
            data = storage.read_bytes(self.uri)
            document = yaml.safe_load(data) if self.uri.endswith(".yaml") else json.loads(data)
        except (yaml.YAMLError, ValueError) as error:
            raise CurateError(f"{self.uri}: damaged: {one_line(error)}; {START_OVER}") from error
        if not isinstance(document, dict):
            raise CurateError(f"{self.uri}: damaged: holds no mapping; {START_OVER}")
        return document

    def found(self, inputs: Inputs) -> Document | None:
        """What was written with equal inputs, in equal order; else None: make it, and write."""
        document = self.read()
        if document is None or document.get("layout") != LAYOUT:
            return None
        return document if _text(document.get("made_from")) == _text(inputs) else None

    def refuse_other(self, inputs: Inputs, remedy: str = START_OVER) -> bool:
        """Whether there is a memo. `inputs` may be some of its keys: these alone are compared,
        before work is spent on the others.

        Raises CurateError, saying what differs, for one with other inputs or of another layout.
        """
        document = self.read()
        if document is None:
            return False
        folder = self.uri.rpartition("/")[0]
        check_layout(document, folder, remedy)
        made_from = document.get("made_from")
        if not isinstance(made_from, dict):
            raise CurateError(f"{self.uri}: not a run's config; set another output")
        wanted = json.loads(json.dumps(inputs))  # lists for tuples, as files have them
        differing = list(_differences({name: made_from.get(name) for name in wanted}, wanted))
        if differing:
            raise CurateError(
                f"{folder}: holds a run with other settings: {'; '.join(differing)}. "
                f"{OTHER_OUTPUT} {remedy}"
            )
        return True

    def write(self, inputs: Inputs, **more: Any) -> None:
        """more: what else the file says."""
        document = {**more, "curate": __version__, "layout": LAYOUT, "made_from": inputs}
        if self.uri.endswith(".yaml"):
            storage.write_bytes(self.uri, to_yaml(json.loads(json.dumps(document))))
        else:
            storage.write_json(self.uri, document)

    def forget(self) -> None:
        """Before what it speaks of is made anew: it must not outlive that."""
        storage.remove_tree(self.uri)


def digest(inputs: Inputs) -> str:
    """sha256, whatever the order of keys."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def check_layout(document: Document, folder: str, remedy: str) -> None:
    """Raises CurateError for a memo of a version that lays its files out otherwise."""
    if document.get("layout") != LAYOUT:
        version = document.get("curate") or (document.get("versions") or {}).get("curate")
        raise CurateError(
            f"{folder}: written by curate {version or 'of unknown version'}, whose files this "
            f"version, {__version__}, does not read. {OTHER_OUTPUT} {remedy}"
        )


def to_yaml(value: Any) -> bytes:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    # Unicode's own line breaks, in a path say, come back from YAML only if they are escaped
    if any(mark in text for mark in "\x85\u2028\u2029\ufeff"):
        text = yaml.safe_dump(value, sort_keys=False)
    return text.encode()


def _text(inputs: Any) -> str:
    """Order counts: another order of sets is another training set."""
    return json.dumps(inputs)


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield f"{key} was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "set"
    text = "absent" if value is None else str(value)
    return text if len(text) <= 80 else text[:79] + "…"
