"""Options that several commands have, and values that options take."""

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


def add_config_options(parser: argparse.ArgumentParser, name: str) -> None:
    """What a command that takes a config and its job have in common."""
    if name not in ("evaluate", "plan"):
        parser.add_argument("--fresh", action="store_true", help="start over; remove earlier work")
    if name in ("run", "compare"):
        help_ = "go on though inputs changed, or are gone"
        parser.add_argument("--accept-changes", action="store_true", help=help_)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in coreset.tau=0.9")
    add_common(parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", help="of a Ray cluster (default: RAY_ADDRESS, or local)")
    parser.add_argument("--verbose", action="store_true", help="Ray's own output too")
    parser.add_argument("--debug", action="store_true", help="tracebacks")
