"""In what numbers a training computes: its weights are float32 always."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """half: what autocast computes in; float32 where None."""

    half: torch.dtype | None
    device: str

    @staticmethod
    def of(name: str, device: torch.device) -> Precision:
        """`auto`: on a GPU bf16, where it has the instructions, and fp16 where not. A CPU does bf16
        right too, and, where it has no instructions for it, slowly."""
        if name == "auto" and device.type == "cuda":
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            name = "bf16" if has_bf16 else "fp16"
        halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return Precision(halves.get(name), device.type)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(
            self.device, self.half or torch.bfloat16, enabled=self.half is not None
        )

    def scaler(self) -> torch.amp.GradScaler:
        """fp16's gradients would vanish: the loss is scaled up, and a step whose gradients overflow
        is left out. Of others it changes nothing."""
        device = "cuda" if self.device == "cuda" else "cpu"
        return torch.amp.GradScaler(device, enabled=self.half is torch.float16)
