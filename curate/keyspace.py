"""Every key of a store that lists them sorted, a page at a time, by many LISTs at once.

Nobody knows beforehand where the keys are. So each worker walks down a range of the key space, page
by page, and one that has nothing to do takes the far part of whichever seems to have most left:

    (start ──listed──> after ┈┈┈┈┈┈┈┈┈┈┈┈┈ cut ┈┈┈┈┈┈┈┈┈┈┈┈┈ end]
                             └ the owner's ┘ └ the helper's ┘

How much is left is guessed from how far the last page went. A bad guess costs a LIST that finds
little, and never a key: ranges join without a gap, and a page ends where its range does.
Strings compare by code points, which is the order of their UTF-8, as stores have it.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import sqrt
from typing import Generic, TypeVar

Entry = TypeVar("Entry", bound=tuple)  # its key first

WORTH_PAGES = 3.0  # left in a range: fewer are listed sooner than shared
TRUSTED_PAGES = 8.0  # a guess of more is not halved: what is farther away may be quite different
DIGITS = 16  # letters that a key's place is told by
END = "\0"  # sorts before all letters


def list_all(
    list_page: Callable[[str | None], tuple[list[Entry], bool]], at_once: int
) -> list[Entry]:
    """Every entry, sorted by key.

    list_page: key, or None for the first → the entries that follow, sorted, and whether there are
    more. It is called from several threads; what it raises is raised here.
    """
    return _Listing(list_page).run(at_once)


@dataclass(eq=False)
class _Range(Generic[Entry]):
    """Keys over `start`, up to and with `end`; None: of all keys."""

    start: str | None
    end: str | None
    pages: float = 0.0  # left, by a guess; none before the first has come
    after: str | None = field(init=False)  # moves with the pages
    folder: str = ""  # what all keys over the last page's way begin with
    entries: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.after = self.start

    def take(self, page: list[Entry], alphabet: list[str]) -> bool:
        """Keep what is in the range; whether its end was reached."""
        keys = [entry[0] for entry in page]
        inside = len(keys) if self.end is None else bisect_right(keys, self.end)
        self.entries += page[:inside]
        if inside < len(keys) or not keys or keys[-1] == self.end:
            return True
        # From where the page before it ended, not from its first key: one folder may fill a page,
        # and it is what lies between folders that tells how many there are
        before = keys[0] if self.after is None else self.after
        self.after = keys[-1]
        self.folder = _shared(before, keys[-1])
        shared = _shared(before, self.end)
        first, last, end = (_number(key, shared, alphabet) for key in (before, keys[-1], self.end))
        self.pages = max(0, end - last) / max(1, last - first)
        return False

    def cut(self, alphabet: list[str]) -> _Range[Entry] | None:
        """Give the far part away; None where there is nothing between."""
        assert self.after is not None  # no page has come, and no guess
        shared = _shared(self.after, self.end)
        level = len(shared) + (len(self.folder) - len(shared)) // 2
        if level > len(shared) + 1:  # a long beginning in common: its end, then what is in it
            cut, near, far = _next(self.folder[:level]), 0.0, 0.0
        else:
            trusted = self.pages <= TRUSTED_PAGES
            near = (1 + self.pages) / 2 if trusted else sqrt(self.pages)  # one is on its way
            far = self.pages - near if trusted else 0.0
            last, end = (_number(key, shared, alphabet) for key in (self.after, self.end))
            # In whole numbers: these are longer than a float is exact
            number = last + (end - last) * int(1000 * near) // int(1000 * self.pages)
            cut = shared + _text(number, alphabet)
        if cut is None or cut <= self.after or (self.end is not None and cut >= self.end):
            self.pages = 0.0
            return None
        given: _Range[Entry] = _Range(cut, self.end, far)
        self.end, self.pages = cut, near
        return given


class _Listing(Generic[Entry]):
    def __init__(self, list_page: Callable[[str | None], tuple[list[Entry], bool]]) -> None:
        self._list_page = list_page
        self._ranges: list[_Range[Entry]] = [_Range(None, None)]
        self._active = [*self._ranges]
        self._taken = False  # the first range
        self._letters: set[str] = set()  # met so far
        self._alphabet: list[str] = []  # they, sorted
        self._failure: BaseException | None = None
        self._change = threading.Condition()

    def run(self, at_once: int) -> list[Entry]:
        with ThreadPoolExecutor(at_once) as pool:
            for worker in [pool.submit(self._work) for _ in range(at_once)]:
                worker.result()
        if self._failure is not None:
            raise self._failure
        ranges = sorted(self._ranges, key=lambda one: one.start or "")
        return [entry for one in ranges for entry in one.entries]

    def _work(self) -> None:
        while (mine := self._next_range()) is not None:
            try:
                done = False
                while not done and self._failure is None:
                    page, more = self._list_page(mine.after)
                    with self._change:
                        done = self._took(mine, page) or not more
                        self._change.notify_all()
            except BaseException as error:
                self._failure = error
            finally:
                with self._change:
                    self._active.remove(mine)
                    self._change.notify_all()

    def _took(self, mine: _Range[Entry], page: list[Entry]) -> bool:
        letters = set("".join(entry[0] for entry in page))
        if not letters <= self._letters:
            self._letters |= letters
            self._alphabet = sorted(self._letters)
        return mine.take(page, self._alphabet)

    def _next_range(self) -> _Range[Entry] | None:
        """Waits for one; None when all are done."""
        with self._change:
            if not self._taken:
                self._taken = True
                return self._active[0]
            while self._active and self._failure is None:
                fullest = max(self._active, key=lambda one: one.pages)
                if fullest.pages < WORTH_PAGES:
                    self._change.wait()
                elif (far := fullest.cut(self._alphabet)) is not None:
                    self._ranges.append(far)
                    self._active.append(far)
                    return far
            return None


def _number(key: str | None, shared: str, alphabet: list[str]) -> int:
    """What follows `shared`, as a number: letters are the digits 1, 2, …, the key's end is 0, and
    what comes after the alphabet a digit more."""
    base = len(alphabet) + 2
    if key is None:
        return base**DIGITS
    number = 0
    for letter in key[len(shared) :][:DIGITS].ljust(DIGITS, END):
        number = number * base + (0 if letter == END else bisect_left(alphabet, letter) + 1)
    return number


def _text(number: int, alphabet: list[str]) -> str:
    """A key whose `_number` it is, or little less."""
    letters = []
    for power in reversed(range(DIGITS)):
        digit, number = divmod(number, (len(alphabet) + 2) ** power)
        if digit == 0:
            break
        letters.append(alphabet[min(digit, len(alphabet)) - 1])
    return "".join(letters)


def _shared(low: str, high: str | None) -> str:
    """What both begin with."""
    if high is None:
        return ""
    differing = (i for i, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1])
    return low[: next(differing, min(len(low), len(high)))]


def _next(prefix: str) -> str | None:
    """The least string over all that begin so; None where no character follows its last."""
    code = ord(prefix[-1]) + 1
    if code > 0x10FFFF:
        return None
    return prefix[:-1] + chr(0xE000 if 0xD800 <= code < 0xE000 else code)
