"""Checkpoints on any filesystem: whole or absent, the newest few kept."""

from __future__ import annotations

import io
import logging
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from curate import storage
from curate.errors import one_line

log = logging.getLogger(__name__)

State = dict[str, Any]  # tensors and figures, nested


def save(folder: str, step: int, state: State, keep: int) -> None:
    """Write first, remove older ones after: a failure leaves the previous checkpoint.

    Raises CurateError where it cannot be written.
    """
    written = f"step-{step:08d}.pt"
    with storage.open_whole(storage.join(folder, written)) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # closing what could not be written hides why it could not
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    names = _names(folder)
    # Later ones were damaged, and are behind us again
    kept = [name for name in names if name <= written][-keep:]
    for name in names:
        if name not in kept:
            storage.remove_tree(storage.join(folder, name))


class Saver:
    """Saves in the background, one at a time: training goes on meanwhile, and waits for the one
    before alone."""

    def __init__(self, folder: str, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None

    def save(self, step: int, state: State) -> None:
        """The state as it is now. Raises what the save before this one failed by."""
        self.wait()
        self.pending = self.pool.submit(save, self.folder, step, _copied(state), self.keep)

    def wait(self) -> None:
        """Until the last one is written. Raises CurateError where it cannot be."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()


def _copied(value: Any) -> Any:
    """On the CPU, and of its own memory, which training will not move."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


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
