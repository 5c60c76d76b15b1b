"""What holds of every page of a report, whatever is in it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

VOID = {"meta", "link", "img", "input", "br", "hr"}
SCRIPTS = {None, "application/json"}


class Page(HTMLParser):
    """Reads a page strictly, and keeps what tests ask for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.stack, self.faults = path, [], []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[str] = []
        self.headings: list[int] = []
        self.text = ""
        self._in_table: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.stack, f"{path.name}: not closed: {self.stack}"

    def handle_starttag(self, tag, attrs) -> None:
        given = dict(attrs)
        if len(given) != len(attrs):
            self.faults.append(f"{tag}: an attribute twice")
        for name, value in attrs:
            if name.startswith("on") or name == "style":
                self.faults.append(f"{tag} has {name}")
            if name in ("href", "src"):
                self._link(tag, value)
        if tag == "img" and not (given.get("alt") or "").strip():
            self.faults.append("img without alt")
        if tag == "th" and given.get("scope") not in ("row", "col"):
            self.faults.append("th without scope")
        if tag == "svg" and given.get("role") != "img" and given.get("aria-hidden") != "true":
            self.faults.append("svg without role")
        if tag == "tbody" and "caption" not in self._in_table:
            self.faults.append("table without caption")
        if tag == "script" and given.get("type") not in SCRIPTS:
            self.faults.append(f"script {given}")
        if tag == "table":
            self._in_table = set()
        self._in_table.add(tag)
        if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self.headings.append(int(tag[1]))
        if "id" in given:
            self.ids.append(given["id"])
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.stack and self.stack[-1] == tag, f"{self.path.name}: </{tag}> in {self.stack}"
        self.stack.pop()

    def handle_data(self, data) -> None:
        if self.stack and self.stack[-1] not in ("script", "style"):
            self.text += data

    def _link(self, tag, value) -> None:
        if tag == "link" and value == "data:,":
            return
        parts = urlsplit(value)
        if parts.scheme or parts.netloc or value.startswith(("/", "..")):
            self.faults.append(f"{tag} leads outside: {value}")
        (self.images if tag == "img" else self.links).append(value)


def read_all(folder: Path) -> dict[str, Page]:
    """Every page of a report, checked."""
    pages = {path.name: Page(path) for path in sorted(folder.glob("*.html"))}
    for name, page in pages.items():
        assert not page.faults, (name, page.faults[:5])
        assert len(page.ids) == len(set(page.ids)), name
        assert page.headings[0] == 1 and page.headings.count(1) == 1, (name, page.headings[:5])
        steps = zip(page.headings, page.headings[1:], strict=False)
        assert all(b <= a + 1 for a, b in steps), (name, page.headings)
        for source in page.images:
            assert (folder / source).is_file(), (name, source)
        for link in page.links:
            parts = urlsplit(link)
            target = parts.path or name
            assert target in pages, (name, link)
            if parts.fragment and "=" not in parts.fragment:
                assert unquote(parts.fragment) in pages[target].ids, (name, link)
    return pages
