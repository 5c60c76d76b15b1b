"""An encoder at work: images → unit embeddings, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curate.embedding.encoders import Encoder
from curate.embedding.tensors import floats_of, tensor_of, torch_sees
from curate.errors import CurateError
from curate.images import Pixels


class Embedder:
    """An encoder on its device: images → unit embeddings.

    Float32 on CPU; bf16 autocast on a GPU. Both in channels_last, which is what their convolution
    kernels want.
    """

    def __init__(self, encoder: Encoder, device: str, batch_size: int) -> None:
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.module = (
            encoder.module.eval()
            .requires_grad_(False)
            .to(self.device)
            .to(memory_format=torch.channels_last)
        )
        mean = torch.tensor(encoder.preprocessing.mean, device=self.device)
        std = torch.tensor(encoder.preprocessing.std, device=self.device)
        # (x/255 - mean) / std as one multiplication and one addition
        self.scale = (1 / (encoder.preprocessing.white * std)).view(1, -1, 1, 1)
        self.shift = (-mean / std).view(1, -1, 1, 1)
        self.upload = _Upload(self.device) if self.device.type == "cuda" else _copied

    def __call__(self, pixels: Pixels) -> NDArray[np.float16]:
        """pixels (N, H, W, C) → (N, D) float16 rows of unit norm, of NaN where there is none.

        Out of GPU memory halves the batch, for good, down to a single image.
        """
        return self.start(pixels)()

    def start(self, pixels: Pixels) -> Callable[[], NDArray[np.float16]]:
        """As a call, but a GPU is not waited for: what is returned does, in any thread. The next
        images can be on their way meanwhile. Of at least one image."""
        rows: list[Tensor] = []
        start = 0
        while start < len(pixels):
            try:
                rows.append(self._forward(self.upload(pixels[start : start + self.batch_size])))
            except torch.cuda.OutOfMemoryError:
                tried = min(self.batch_size, len(pixels) - start)
                if tried == 1:
                    raise CurateError(
                        "encoder: one image does not fit the GPU's memory; lower image_px"
                    ) from None
                self.batch_size = tried // 2
                torch.cuda.empty_cache()
                continue
            start += len(rows[-1])
        return _fetching(torch.cat(rows))

    @torch.inference_mode()
    def _forward(self, batch: Tensor) -> Tensor:
        """(N, H, W, C) integers → (N, D) float16."""
        batch = floats_of(batch.permute(0, 3, 1, 2))  # (N, C, H, W), channels_last as it lies
        batch = batch.mul_(self.scale).add_(self.shift)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            features = self.module(batch)
        features = features.float()
        norms = features.norm(dim=1, keepdim=True)
        # A dead embedding has no direction, and one whose norm overflows has lost it
        alive = (norms > 0) & torch.isfinite(norms)
        return torch.where(alive, features / norms, torch.nan).half()


def _copied(pixels: Pixels) -> Tensor:
    """What Ray hands out is read-only, and torch has no such tensors."""
    return tensor_of(pixels.copy())


class _Upload:
    """Arrays to a GPU: by turns through two page-locked buffers and on a stream of its own, so that
    one is on its way while what came before is computed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        empty = torch.empty(0, dtype=torch.uint8)
        self.buffers = [(empty, torch.cuda.Event()) for _ in range(2)]

    def __call__(self, pixels: Pixels) -> Tensor:
        pixels = torch_sees(pixels)
        buffer, copied = self.buffers.pop(0)
        copied.synchronize()
        if buffer.shape[1:] != pixels.shape[1:] or len(buffer) < len(pixels):
            kind = torch.uint8 if pixels.dtype == np.uint8 else torch.int16
            buffer = torch.empty(pixels.shape, dtype=kind, pin_memory=True)
        self.buffers.append((buffer, copied))
        staged = buffer[: len(pixels)]
        np.copyto(staged.numpy(), pixels)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            batch = staged.to(self.device, non_blocking=True)
            copied.record(self.stream)
        computing.wait_event(copied)
        batch.record_stream(computing)  # or its memory were free for the next one too early
        return batch


def _fetching(rows: Tensor) -> Callable[[], NDArray[np.float16]]:
    """Sets the copy to the host going; what is returned waits for it."""
    if rows.device.type == "cpu":
        return lambda: cast("NDArray[np.float16]", rows.numpy())
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    host.copy_(rows, non_blocking=True)
    there = torch.cuda.Event()
    there.record(torch.cuda.current_stream(rows.device))

    def fetched() -> NDArray[np.float16]:
        there.synchronize()
        return cast("NDArray[np.float16]", host.numpy())

    return fetched
