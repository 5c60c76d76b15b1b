"""Nothing from outside becomes HTML."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.report.collect.settings import public
from curate.report.pages import plots
from curate.report.pages.markup import json_text, percent, short, tag, text


class _Reader(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, name, attrs) -> None:
        self.tags.append((name, attrs))

    def handle_data(self, data) -> None:
        self.words += data


@given(st.text(), st.text())
def test_any_text_stays_text(inside, attribute) -> None:
    page = str(tag("p", inside, title=attribute))
    page.encode()
    read = _Reader(page)
    [(name, [(key, value)])] = read.tags
    assert (name, key) == ("p", "title")
    assert value == _Reader(str(text(attribute))).words or "\r" in attribute
    assert len(read.words) == len(inside) and "\x00" not in page


def test_only_what_tag_made_is_html() -> None:
    assert tag("p", tag("b", "<"), "<b>") == "<p><b>&lt;</b>&lt;b&gt;</p>"
    assert tag("a", "x", href='"><script>') == '<a href="&quot;&gt;&lt;script&gt;">x</a>'
    assert tag("img", alt="a'b", hidden=True, width=None) == '<img alt="a&#x27;b" hidden>'


def test_text_that_turns_its_line_around_does_not() -> None:
    assert text("gpj.\u202eexe\x1b[31m") == "gpj.\ufffdexe\ufffd[31m"
    assert text("a\ud800b") == "a\ufffdb"


@given(st.recursive(st.text() | st.none() | st.integers(), lambda inner: st.lists(inner)))
def test_json_cannot_end_its_script(value) -> None:
    shown = json_text(value)
    assert not set(shown) & set("<>&\u2028\u2029")
    assert json.loads(shown) == value


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("/data/a?b@c.jpg", "/data/a?b@c.jpg"),
        ("s3://bucket/key@2x.png", "s3://bucket/key@2x.png"),
        ("https://me:pass@host/a.jpg?X-Signature=1", "https://host/a.jpg?…"),
        ("read of https://me:p@host/x?k=1 failed", "read of https://host/x?… failed"),
    ],
)
def test_secrets_of_uris_are_left_out(uri, shown) -> None:
    assert public(uri) == shown


def test_numbers_and_names() -> None:
    shares = [0, 1, 0.5, 0.0996, 0.05, 0.0079, 0.000034]
    shown = ["0 %", "100 %", "50 %", "10 %", "5.0 %", "0.79 %", "0.0034 %"]
    assert [percent(share) for share in shares] == shown
    assert short("a" * 300, 11) == "aaaaa…aaaaa" and short("abc") == "abc"


@pytest.mark.parametrize(
    ("points", "threshold", "stopping"),
    [
        ([(1, 0.5, 3)], None, None),
        ([(1, 0.5, 3)], 0.5, (2, 0.4)),
        ([(1, 0.5, 3), (2, 0.5, 3)], 0.5, None),
        ([(n, 1 / n, n) for n in range(1, 401)], 0.9, (401, -0.1)),
        ([(1, 0.99999, 1), (2, 0.99998, 2)], None, None),
    ],
)
def test_a_curve_of_any_shape_is_a_picture(points, threshold, stopping) -> None:
    drawn = plots.curve(points, threshold, stopping, "f(S_t) & <more>")
    picture = ET.fromstring(drawn)
    assert picture.get("aria-label") == "f(S_t) & <more>"
    dots = list(picture.iter("circle"))
    for dot in dots:
        assert 0 <= float(dot.get("cx")) <= plots.WIDTH
        assert 0 <= float(dot.get("cy")) <= plots.HEIGHT
    labels = [e.text for e in picture.iter("text")]
    assert len(labels) == len(set(labels)), labels
