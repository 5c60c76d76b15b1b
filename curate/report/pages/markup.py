"""HTML from Python calls. Every text is escaped unless it came out of here: names of files, labels
and keys come from the web.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

# Neither allowed in HTML nor of use in a name; with them what turns text around to hide an ending
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_VOID = {"meta", "link", "img", "input", "br", "hr"}


class Html(str):
    """Text that is HTML already."""


def text(value: Any, /) -> Html:
    """The one way by which anything becomes HTML, inside attributes too."""
    if isinstance(value, Html):
        return value
    printable = _LONE_SURROGATE.sub("\ufffd", _UNPRINTABLE.sub("\ufffd", str(value)))
    return Html(html.escape(printable, quote=True))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """tag("td", "a < b", class_="n", aria_label="…"). Children: text, Html or lists of them; None
    is left out, and so is an attribute of None or False."""
    shown = []
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            shown.append(f" {attribute}")
        elif value is not None and value is not False:
            shown.append(f' {attribute}="{text(value)}"')
    opening = f"<{name}{''.join(shown)}>"
    return Html(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")


def join(*children: Any) -> Html:
    parts = []
    for child in children:
        if isinstance(child, list | tuple):
            parts.append(join(*child))
        elif child is not None:
            parts.append(text(child))
    return Html("".join(parts))


def json_text(value: Any) -> Html:
    """For a <script type="application/json">, which nothing inside can end."""
    plain = json.dumps(value, separators=(",", ":"))
    return Html(plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def short(value: str, limit: int = 120) -> str:
    """Long names keep their two ends."""
    if len(value) <= limit:
        return value
    return f"{value[: limit // 2]}…{value[-limit // 2 + 1 :]}"


def count(value: int) -> str:
    return f"{value:,}"


def images(value: int) -> str:
    return f"{value:,} image" if value == 1 else f"{value:,} images"


def percent(share: float) -> str:
    """Two digits that say something: 0.034 %, 5.0 %, 31 %."""
    if share == 0 or share >= 0.0995:
        return f"{share:.0%}".replace("%", " %")
    digits = 1 if share >= 0.00995 else 2 if share >= 0.000995 else 4
    return f"{100 * share:.{digits}f} %"
