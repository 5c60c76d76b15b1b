"""Names of files: as text that is always UTF-8, and many of them written as one."""

from __future__ import annotations

import itertools
import re

SURROGATE = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, as Python reads it
ESCAPE = re.compile(rb"%(25|[89A-F][0-9A-F])")
BRACES = re.compile(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}")


def escaped(path: str) -> str:
    """A path as `os` gives it → the same as UTF-8, which `unescaped` turns back.

    Bytes that are not UTF-8 are lone surrogates in Python. The part of a path, between two slashes,
    that has some is percent-encoded, its own percent signs too. Every other part stays as it is,
    100%.jpg and caf%C3%A9.jpg, but for one that would be taken for such an escape: a%FF.jpg is
    a%25FF.jpg. In a URL, which has escapes of its own, only those bytes are encoded.
    """
    if "://" in path:
        return _encoded(path)
    return "/".join(map(_escaped, path.split("/")))


def unescaped(path: str) -> str:
    """The path that `escaped` was given."""
    if "%" not in path:
        return path
    return "/".join(plain if _escaped(plain := _unquoted(x)) == x else x for x in path.split("/"))


def _escaped(part: str) -> str:
    plain = _unquoted(part)
    mistaken = plain != part and _escaped(plain) == part
    return _encoded(part.replace("%", "%25")) if mistaken or SURROGATE.search(part) else part


def _encoded(text: str) -> str:
    return SURROGATE.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", text)


def _unquoted(part: str) -> str:
    data = part.encode("utf-8", "surrogateescape")
    data = ESCAPE.sub(lambda byte: bytes.fromhex(byte[1].decode()), data)
    return data.decode("utf-8", "surrogateescape")


def expanded(pattern: str) -> list[str]:
    """Braces as shells and WebDataset write them: a-{000..099}.tar, {left,right}-{0..9}.jpg.

    The names are in the order of what is written, the last group fastest; a range keeps its zeros.
    Other braces stay as they are.
    """
    pieces = BRACES.split(pattern)  # text, group, text, group, …, text
    if len(pieces) == 1:
        return [pattern]
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    # A group around others comes to light when those are gone
    return [name for chosen in itertools.product(*choices) for name in expanded("".join(chosen))]


def _choices(group: str) -> list[str]:
    if "," in group:
        return group.split(",")
    first, last = group.split("..")
    padded = (len(first) > 1 and first.startswith("0")) or (len(last) > 1 and last.startswith("0"))
    digits = max(len(first), len(last)) if padded else 1
    step = 1 if int(first) <= int(last) else -1
    return [f"{number:0{digits}d}" for number in range(int(first), int(last) + step, step)]
