"""The pages as Chromium shows them: from disk and from a server, wide and narrow, dark and light,
with scripts and without, by mouse and by keyboard.
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from curate.report.build import build
from tests.report import building
from tests.report.browser import Browser, chromium

PAGES = ["index", "gallery-1", "gallery-2", "gallery-source-1", "gallery-class-1", "centroids-1"]

pytestmark = pytest.mark.skipif(
    chromium() is None and os.environ.get("CI") != "true",
    reason="no Chromium here: apt-get install chromium",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_session) -> Path:
    """A report with scripts planted in every name, and more than one page of images."""
    output = building.write_run(
        tmp_path_factory.mktemp("a # strange % name") / "b?c",
        opened=600,
        pictures=260,
        coreset={"tau": None, "budget": 150},
        labels=[building.EVIL, building.EVIL_ATTRIBUTE, None, "dog"],
        key=building.EVIL_ATTRIBUTE + "{}",
        reason=building.EVIL,
    )
    building.write_results(output, building.EVIL)
    with (output.parent / "pictures.bin").open("r+b") as pictures:
        pictures.write(b"\0" * 60_000)  # some of the images are not readable any more
    build(str(output))
    return output / "report"


@pytest.fixture(scope="module")
def server(folder) -> Iterator[str]:
    """The same folder over HTTP, as an object store gives it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture(params=["disk", "server"])
def root(request, folder) -> str:
    return folder.as_uri() if request.param == "disk" else request.getfixturevalue("server")


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_amiss(browser, root, page) -> None:
    browser.open(f"{root}/{page}.html")
    assert browser.images_load() == []
    assert browser.evaluate("document.images.length") > 10
    assert browser.errors == []
    outside = [url for url in browser.requests if not url.startswith((root, "data:"))]
    assert outside == []
    # As if the planted had run: what it would have set, and what it would have made
    assert browser.evaluate("window.owned") is None
    assert browser.evaluate("document.querySelectorAll('img:not([alt]), [onerror]').length") == 0
    assert building.EVIL_ATTRIBUTE[:20] in browser.evaluate("document.body.innerText")


def test_the_policy_would_stop_a_script(browser, root) -> None:
    browser.open(f"{root}/index.html")
    browser.evaluate(
        """(() => {
             const script = document.createElement("script");
             script.textContent = "window.owned = 1";
             document.body.append(script);
             document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.owned=1'>");
             document.body.insertAdjacentHTML("beforeend", "<p style='color: red' id=styled>x</p>");
             return new Promise((done) => setTimeout(done, 200));
           })()"""
    )
    assert browser.evaluate("window.owned") is None
    assert browser.evaluate("getComputedStyle(styled).color") != "rgb(255, 0, 0)"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("page", ["index", "gallery-1", "centroids-1"])
def test_on_a_phone_and_in_the_dark(browser, folder, page, dark) -> None:
    browser.open(f"{folder.as_uri()}/{page}.html", width=360, height=740, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") == 360
    smallest = browser.evaluate(
        """Math.min(...[...document.querySelectorAll("p, td, th, figcaption")]
             .map((e) => parseFloat(getComputedStyle(e).fontSize)))"""
    )
    assert smallest >= 12
    # Links, boxes and buttons that a finger can hit
    small = browser.evaluate(
        """[...document.querySelectorAll("nav a, button, select, .legend label")]
           .map((e) => [e.textContent.slice(0, 20), e.getBoundingClientRect().height])
           .filter(([, height]) => height > 0 && height < 24)"""
    )
    assert small == []
    for pair in json.loads(browser.evaluate(CONTRASTS)):
        assert pair["ratio"] >= 4.5, pair


# WCAG's contrast of the text of each kind of element with the page's ground
CONTRASTS = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = light(parts(getComputedStyle(document.body).backgroundColor));
  const found = {};
  for (const e of document.querySelectorAll("h1,h2,p,a,td,th,dt,dd,figcaption,span,caption,text")) {
    const style = getComputedStyle(e);
    const colour = e.localName === "text" ? style.fill : style.color;
    if (!e.textContent.trim()) continue;
    const own = light(parts(colour));
    const ratio = (Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05);
    found[`${e.localName} ${colour}`] = { element: `${e.localName}.${e.className}`, ratio };
  }
  return JSON.stringify(Object.values(found));
})()"""


def shown(browser) -> list[str]:
    """Alternative texts of the images that are shown."""
    return browser.evaluate(
        """[...document.querySelectorAll(".tile > :first-child")]
           .filter((e) => e.getBoundingClientRect().height > 0)
           .map((e) => e.getAttribute("alt") ?? e.getAttribute("aria-label"))"""
    )


def choose(browser, name: str, value: str) -> None:
    browser.evaluate(
        f"""(() => {{
              const field = document.getElementById("filter").elements[{json.dumps(name)}];
              field.value = {json.dumps(value)};
              field.dispatchEvent(new Event("input", {{ bubbles: true }}));
            }})()"""
    )


def test_filters_filter(browser, root) -> None:
    browser.open(f"{root}/gallery-1.html")
    assert len(shown(browser)) == 100
    choose(browser, "class", building.EVIL)
    planted = shown(browser)
    assert planted and all(building.EVIL in alt for alt in planted)
    found = browser.evaluate("document.getElementById('found').textContent")
    assert found == f"{len(planted)} of 150 shown images match"
    choose(browser, "source", "right")
    both = shown(browser)
    assert 0 < len(both) < len(planted) and all(alt.endswith("from right") for alt in both)
    address = browser.evaluate("location.href")
    choose(browser, "from", "1")
    choose(browser, "to", "2")
    assert len(shown(browser)) < len(both)
    browser.evaluate("document.querySelector('#filter button').click()")
    browser.evaluate("new Promise((done) => setTimeout(done, 50))")
    assert len(shown(browser)) == 100
    choose(browser, "from", "1")
    assert len(shown(browser)) == 100  # of 150: the rest on demand
    browser.evaluate("document.getElementById('more').click()")
    assert len(shown(browser)) == 150
    assert browser.evaluate("document.activeElement.className") == "tile"
    assert browser.images_load() == []
    browser.open("about:blank")
    browser.open(address)  # which can be given to others
    assert shown(browser) == both
    assert browser.errors == [] and browser.evaluate("window.owned") is None


def test_a_class_of_the_index_leads_to_its_images(browser, root) -> None:
    browser.open(f"{root}/index.html")
    browser.open(browser.evaluate("document.querySelector('#classes a').href"))
    label = browser.evaluate("document.getElementById('filter').elements['class'].value")
    assert label and all(label in alt for alt in shown(browser))


def test_images_that_are_gone_have_a_frame(browser, folder) -> None:
    browser.open(f"{folder.as_uri()}/gallery-1.html")
    frames = browser.evaluate("document.querySelectorAll('.gone').length")
    assert frames > 0
    choose(browser, "from", "1")
    assert browser.evaluate("document.querySelectorAll('#matches .gone').length") > 0
    assert any(alt.startswith("Not readable (") for alt in shown(browser))


def test_without_scripts(browser, root) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(f"{root}/gallery-1.html")
        assert browser.evaluate("document.getElementById('filter').hidden")
        assert len(shown(browser)) == 100
        browser.open(f"{root}/gallery-2.html")
        assert len(shown(browser)) == 50
        browser.open(f"{root}/index.html")
        box = "document.querySelector('input.of-open')"
        drawn = "getComputedStyle(document.querySelector('.of-map .map .open')).display"
        assert browser.evaluate(drawn) == "inline"
        browser.evaluate(f"{box}.checked = false")
        assert browser.evaluate(drawn) == "none"
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


def test_by_keyboard(browser, folder) -> None:
    browser.open(f"{folder.as_uri()}/index.html")
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.className") == "skip"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    reached = []
    for _ in range(60):
        browser.press("Tab", 9)
        reached.append(
            browser.evaluate(
                """(() => {
                     const e = document.activeElement, style = getComputedStyle(e);
                     return [e.localName, e.className, style.outlineStyle, style.outlineWidth];
                   })()"""
            )
        )
    assert {"a", "div", "input"} <= {name for name, *_ in reached}  # links, tables, boxes
    for name, class_, style, width in reached:
        if name != "body":
            assert (style, width) == ("solid", "3px"), (name, class_)


def test_what_a_screen_reader_is_told(browser, folder) -> None:
    for page in ("index", "gallery-1"):
        browser.open(f"{folder.as_uri()}/{page}.html")
        nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
        named = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]
        roles = {role for role, _ in named}
        assert {"main", "navigation", "banner", "heading", "image"} <= roles
        must_be_named = {"image", "img", "link", "button", "table", "region", "checkbox"}
        must_be_named |= {"combobox", "spinbutton", "navigation", "form"}
        assert [one for one in named if one[0] in must_be_named and not one[1].strip()] == []
