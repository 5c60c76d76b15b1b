"""The one exception that users are meant to read."""

from __future__ import annotations

from curate.privacy import public_text


class CurateError(Exception):
    """A failure that the user can mend: one line that names the key or file, and the remedy."""


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """The message of any exception, or another text that may be long, folded into one line, its
    URLs without secrets."""
    text = public_text(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
