"""Checkpoints on any filesystem: whole or absent, the newest few kept."""

from __future__ import annotations

import io
import logging
import zipfile
from functools import partial
from typing import Any

import torch

from curate import storage
from curate.errors import one_line

log = logging.getLogger(__name__)

State = dict[str, Any]  # tensors and figures, nested


def save(folder: str, step: int, state: State, keep: int) -> None:
    """Write first, remove older ones after: a failure leaves the previous checkpoint.

    Raises CurateError where it cannot be written.
    """
    file = io.BytesIO()
    torch.save(state, file)
    written = f"step-{step:08d}.pt"
    storage.write_bytes(storage.join(folder, written), file.getvalue())
    names = _names(folder)
    # Later ones were damaged, and are behind us again
    kept = [name for name in names if name <= written][-keep:]
    for name in names:
        if name not in kept:
            storage.remove_tree(storage.join(folder, name))


def newest(folder: str) -> State | None:
    """The newest checkpoint that can be read; None where there is none."""
    for name in reversed(_names(folder)):
        uri = storage.join(folder, name)
        # What cannot be had is no damage: it fails this start, and not the checkpoint
        data = io.BytesIO(storage.with_retries(uri, partial(storage.read_bytes, uri)))
        try:
            with zipfile.ZipFile(data) as archive:  # torch itself looks at no checksum
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"wrong checksum of {damaged}")
            data.seek(0)
            state: State = torch.load(data, map_location="cpu", weights_only=True)
            return state
        except Exception as error:  # unpickling raises anything at all of damaged data
            log.warning("%s: damaged (%s); going on from an older one", uri, one_line(error, 80))
    return None


def _names(folder: str) -> list[str]:
    return sorted(
        name
        for name in storage.names_in(folder)
        if name.startswith("step-") and name.endswith(".pt")
    )
