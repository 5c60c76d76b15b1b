"""Values on the command line."""

from __future__ import annotations

import argparse


def tau(text: str) -> float | None:
    return None if text == "none" else _threshold(text)


def tau_or_none(text: str) -> float | str:
    return text if text == "none" else _threshold(text)


def _threshold(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be between 0 and 1")
    return value


def budget(text: str) -> int | float | str:
    if text == "auto":
        return text
    value = int(text) if text.isdigit() else float(text)
    if value < 0 or (isinstance(value, float) and value > 1):
        raise argparse.ArgumentTypeError(f"{text}: a whole number of images, or a fraction to 1.0")
    return value
