"""Training sets that were left half-made: what is done is not fetched again."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from curate.dataset import copying, materialise
from curate.dataset.copying import Copied, NotNow
from curate.errors import CurateError
from curate.runfiles.files import TrainingSetFiles
from curate.settings import RunSettings
from curate.settings import load as config
from tests import datasets

pytestmark = pytest.mark.usefixtures("ray_session")

LISTS, IMAGES = 5, 6


class Site(http.server.BaseHTTPRequestHandler):
    """/LIST/IMAGE.png, a little late; what lies below /closed answers 503 while it is closed."""

    protocol_version = "HTTP/1.1"
    address: str
    asked: Counter[str]
    closed: set[str]
    seconds: float

    def do_GET(self) -> None:
        type(self).asked[self.path] += 1
        time.sleep(self.seconds)
        name, _, image = self.path.strip("/").partition("/")
        data = b"" if name in self.closed else datasets.picture(int(image.removesuffix(".png")))
        self.send_response(503 if name in self.closed else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[type[Site]]:
    class Own(Site):
        asked, closed, seconds = Counter(), set(), 0.0

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    Own.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield Own
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def document(site: type[Site], tmp_path: Path) -> dict[str, Any]:
    """Lists of images on the site, a piece each."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "0.png").write_bytes(datasets.picture(0))
    sources = []
    for number in range(LISTS):
        lines = [f"{site.address}/{number}/{number * 100 + i}.png" for i in range(IMAGES)]
        (tmp_path / f"{number}.txt").write_text("\n".join(lines))
        path = str(tmp_path / f"{number}.txt")
        kind = {"kind": "url_list", "path": path, "allow_private": True}
        sources.append({"name": f"list{number}", **kind})
    target = {"kind": "image_folder", "path": str(tmp_path / "target")}
    return {"target": target, "open": sources, "output": str(tmp_path / "run")}


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def made(settings: RunSettings, folder: Path) -> dict[str, bytes]:
    materialise.training_images(settings, ["open"], str(folder))
    return files_in(folder)


def test_half_made(document: dict[str, Any], site: type[Site], tmp_path: Path) -> None:
    """Two pieces were copied when it ended, of a third a part was written and nothing else."""
    settings = config.parse(document, "test")
    whole = made(settings, tmp_path / "undisturbed")
    asked = materialise._asked(settings, ["open"])
    made_from = materialise._request(settings, ["open"], asked)
    files = TrainingSetFiles(str(tmp_path / "data"))
    max_bytes = settings.images.max_bytes
    materialise._begun({**made_from, "max_bytes": max_bytes}, asked, files)
    sources = {source.name: source for source in settings.open}
    for number in (0, 3, 1):
        assert isinstance(copying.copy(files, number, sources, settings.images), Copied)
    Path(files.done(1)).unlink()
    Path(files.part_of(1, 7)).write_bytes(b"of a try that found more")
    site.asked.clear()
    assert made(settings, tmp_path / "data") == whole
    expected = {f"/{n}/{n * 100 + i}.png" for n in (1, 2, 4) for i in range(IMAGES)}
    assert site.asked == Counter(expected)


def test_another_request_starts_anew(
    document: dict[str, Any], site: type[Site], tmp_path: Path
) -> None:
    settings = config.parse(document, "test")
    files = TrainingSetFiles(str(tmp_path / "data"))
    asked = materialise._asked(settings, ["open"])
    materialise._begun({"of": "others"}, asked, files)
    sources = {source.name: source for source in settings.open}
    copying.copy(files, 0, sources, settings.images)
    site.asked.clear()
    made(settings, tmp_path / "data")
    assert set(site.asked.values()) == {1} and len(site.asked) == LISTS * IMAGES


def test_a_list_that_changed_is_listed_anew(document: dict[str, Any], tmp_path: Path) -> None:
    settings = config.parse(document, "test")
    asked = materialise._asked(settings, ["open"])
    made_from = materialise._request(settings, ["open"], asked)
    files = TrainingSetFiles(str(tmp_path / "data"))
    materialise._begun({**made_from, "max_bytes": settings.images.max_bytes}, asked, files)
    path = Path(document["open"][1]["path"])
    path.write_text(path.read_text().replace("/100.png", "/199.png"))
    with pytest.raises(CurateError, match=r"1\.txt.*: changed.*run the same command again"):
        materialise.training_images(settings, ["open"], str(tmp_path / "data"))
    assert made(settings, tmp_path / "data") == made(settings, tmp_path / "undisturbed")


def test_what_does_not_answer_now(
    document: dict[str, Any],
    site: type[Site],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other pieces are copied; it is named; the next call asks for it alone."""
    settings = config.parse(document, "test")
    whole = made(settings, tmp_path / "undisturbed")

    @ray.remote(runtime_env={"env_vars": {"OF_THIS_TEST": uuid.uuid4().hex}})
    def impatient(*arguments: Any) -> Copied | NotNow:
        from curate.sources import base

        base.FIRST_PATIENCE_S, copying.PAUSE_S, copying.ATTEMPTS = 0.2, 0.1, 2
        return copying.copy(*arguments)

    monkeypatch.setattr(materialise, "copy_piece", impatient)
    site.closed.update("24")
    site.asked.clear()
    with pytest.raises(
        CurateError,
        match=r"data: 2 of 5 pieces, 12 images, cannot be read now \(.*503.*same command",
    ):
        materialise.training_images(settings, ["open"], str(tmp_path / "data"))
    done = {path: times for path, times in site.asked.items() if path[1] not in "24"}
    assert set(done.values()) == {1} and len(done) == 3 * IMAGES
    assert not (tmp_path / "data" / "index.json").exists()
    site.closed.clear()
    site.asked.clear()
    assert made(settings, tmp_path / "data") == whole
    assert len(site.asked) == 2 * IMAGES and set(site.asked.values()) == {1}


@pytest.mark.slow
def test_a_killed_driver(document: dict[str, Any], site: type[Site], tmp_path: Path) -> None:
    settings = config.parse(document, "test")
    whole = made(settings, tmp_path / "undisturbed")
    site.seconds = 0.3
    site.asked.clear()
    program = (
        "import sys, json; from curate import cluster; from curate.dataset import materialise; "
        "from curate.settings import load; cluster.connect(); "
        "materialise.training_images(load.parse(json.loads(sys.argv[1]), 'test'), ['open'], "
        "sys.argv[2])"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(document), str(tmp_path / "data")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "RAY_ADDRESS": ""},
        start_new_session=True,
    )
    making = tmp_path / "data" / "making"
    try:
        while not list(making.glob("done-*")):
            assert driver.poll() is None
            time.sleep(0.01)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    done = {int(path.stem.removeprefix("done-")) for path in making.glob("done-*")}
    assert 0 < len(done) < LISTS and not (tmp_path / "data" / "index.json").exists()
    site.seconds = 0.0
    asked = Counter(site.asked)
    assert made(settings, tmp_path / "data") == whole
    again = {int(path.split("/")[1]) for path in site.asked - asked}
    assert again == set(range(LISTS)) - done
