"""Pictures of numbers, as SVG without scripts. Colours are classes of style.css, dark and light.

A phone is 360 px wide: plots with text are drawn for that width; a bar or an interval inside a
table stretches with its cell and has no text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from curate.report.content import Cloud
from curate.report.pages.markup import Html, count, join, tag

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 38
MAP_SIDE = 400


def bar(parts: Sequence[tuple[str, float]]) -> Html:
    """Parts of a bar one after the other: (class, share of the whole width)."""
    rects, x = [], 0.0
    for class_, share in parts:
        if share > 0:
            # A little that is there is seen to be there
            width = max(100 * share, 0.6)
            rects.append(tag("rect", class_=class_, x=_n(x), width=_n(width), height=10))
            x += width
    return _stretched("bar", 10, rects)


def interval(low: float, middle: float, high: float, best: bool) -> Html:
    """An error bar on a scale of 0…1."""
    a, m, b = (100 * min(max(v, 0.0), 1.0) for v in (low, middle, high))
    parts = [
        tag("rect", class_="track", y=4.5, width=100, height=1),
        tag("rect", class_="whisker", x=_n(a), y=3.5, width=_n(max(b - a, 0.8)), height=3),
        tag("rect", class_="best" if best else "mean", x=_n(m - 0.7), y=0, width=1.4, height=10),
    ]
    return _stretched("interval", 10, parts)


def shift(shares: Sequence[tuple[float, float]]) -> Html:
    """Shares of the sources before (above) and after (below), with a band from one to the other."""
    shapes, above, below = [], 0.0, 0.0
    for i, (before, after) in enumerate(shares):
        class_ = f"s{min(i, 6)}"
        x0, x1, u0, u1 = above, above + before, below, below + after
        band = (
            f"M{_n(100 * x0)} 14L{_n(100 * x1)} 14"
            f"C{_n(100 * x1)} 28 {_n(100 * u1)} 28 {_n(100 * u1)} 42"
            f"L{_n(100 * u0)} 42C{_n(100 * u0)} 28 {_n(100 * x0)} 28 {_n(100 * x0)} 14Z"
        )
        shapes += [
            tag("path", class_=f"{class_} band", d=band),
            tag("rect", class_=class_, x=_n(100 * x0), width=_n(100 * before), height=14),
            tag("rect", class_=class_, x=_n(100 * u0), y=42, width=_n(100 * after), height=14),
        ]
        above, below = x1, u1
    return _stretched("shift", 56, shapes)


def _stretched(class_: str, height: int, shapes: list[Html]) -> Html:
    return tag(
        "svg",
        shapes,
        class_=class_,
        viewBox=f"0 0 100 {height}",
        preserveAspectRatio="none",
        aria_hidden="true",
        focusable="false",
    )


def curve(
    points: Sequence[tuple[int, float, int]],
    threshold: float | None,
    stopping: tuple[int, float] | None,
    description: str,
) -> Html:
    """f(S_t) against the round. stopping: the round that was not taken any more."""
    values = [objective for _, objective, _ in points]
    values += [v for v in (threshold, stopping and stopping[1]) if v is not None]
    low, high = min(values), max(values)
    pad = max((high - low) * 0.12, 1e-4)
    ticks = _ticks(low - pad, high + pad, 4)
    low, high = min(low - pad, ticks[0]), max(high + pad, ticks[-1])
    last = max(points[-1][0], stopping[0] if stopping else 1)
    x = _scale(1, max(last, 2), LEFT, WIDTH - RIGHT)
    y = _scale(low, high, HEIGHT - BOTTOM, TOP)
    digits = max(0, 1 - math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    shapes = []
    for value in ticks:
        shapes.append(_line("grid", LEFT, y(value), WIDTH - RIGHT, y(value)))
        shapes.append(_label(f"{value:.{digits}f}", LEFT - 6, y(value) + 4, "end"))
    for value in _ticks(1, last, 5):
        if value >= 1 and value == int(value) and value <= last:
            shapes.append(_label(count(int(value)), x(value), HEIGHT - BOTTOM + 16))
    shapes.append(_label("round", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle", "axis"))
    path = "".join(
        f"{'L' if i else 'M'}{_n(x(number))} {_n(y(value))}"
        for i, (number, value, _) in enumerate(points)
    )
    shapes.append(tag("path", class_="curve", d=path))
    if len(points) <= 40:
        shapes += [_dot("dot", x(number), y(value)) for number, value, _ in points]
    if threshold is not None:
        shapes.append(_line("threshold", LEFT, y(threshold), WIDTH - RIGHT, y(threshold)))
        shapes.append(
            _label("threshold", WIDTH - RIGHT, y(threshold) - 5, "end", "threshold-label")
        )
    if stopping is not None:
        shapes.append(_dot("refused", x(stopping[0]), y(stopping[1])))
    return _figure(shapes, WIDTH, HEIGHT, description, "plot")


def clouds(shown: Sequence[Cloud], description: str, points_each: int | None = None) -> Html:
    """Sets on a map over each other; style.css hides those whose box is not ticked."""
    side = MAP_SIDE
    layers = []
    for part in shown:
        places = part.points[:points_each].tolist()
        points = "".join(f"M{_n(x * side)} {_n((1 - y) * side)}h0" for x, y in places)
        shapes = [tag("path", class_="points", d=points)]
        for rings in part.outlines:
            path = "".join(
                "M" + "L".join(f"{_n(x * side)} {_n((1 - y) * side)}" for x, y in ring) + "Z"
                for ring in rings
            )
            shapes.append(tag("path", class_="outline", d=path))
        layers.append(tag("g", shapes, class_=part.name))
    return _figure(layers, side, side, description, "plot map")


def _figure(shapes: list[Html], width: int, height: int, description: str, class_: str) -> Html:
    return tag(
        "svg",
        join(shapes),
        class_=class_,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=description,
    )


def _line(class_: str, x1: float, y1: float, x2: float, y2: float) -> Html:
    return tag("path", class_=class_, d=f"M{_n(x1)} {_n(y1)}L{_n(x2)} {_n(y2)}")


def _dot(class_: str, x: float, y: float) -> Html:
    return tag("circle", class_=class_, cx=_n(x), cy=_n(y), r=3)


def _label(
    words: str, x: float, y: float, anchor: str = "middle", class_: str | None = None
) -> Html:
    return tag("text", words, x=_n(x), y=_n(y), text_anchor=anchor, class_=class_)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers from low to high, about so many, two at least."""
    span = max(high - low, 1e-9)
    step = 10 ** math.floor(math.log10(span / wanted))
    step *= min((1, 2, 5, 10), key=lambda m: abs(span / (m * step) - wanted))
    first = math.floor(low / step)
    found = [i * step for i in range(first, first + 50) if low <= i * step <= high + 1e-12]
    return found if len(found) > 1 else [first * step, (first + 1) * step]


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
