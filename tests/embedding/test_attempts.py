"""Units that cannot be read for a while, for good, or not as they were planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from curate import cli
from curate.embedding import encoders, stage
from curate.embedding.stage import embed
from curate.errors import CurateError
from curate.pipeline import run
from curate.runfiles.run import Run
from curate.settings import load as config
from tests import datasets
from tests.servers import Handler, Server

IMAGES = 20  # of each host
BUSY = 10**9


class Host(Handler):
    """Refuses each path so many times, and asks to be left alone: nobody waits for it."""

    refusals: int
    tries: Counter[str]

    def do_GET(self) -> None:
        self.tries[self.path] += 1
        refused = self.tries[self.path] <= self.refusals
        data = b"" if refused else datasets.picture(int(self.path.strip("/")))
        self.send_response(503 if refused else 200)
        if refused:
            self.send_header("Retry-After", "600")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hosts() -> Iterator[dict[str, Server]]:
    """One that serves, one that does at the second try, one that does not."""
    refusals = {"steady": 0, "later": 1, "never": BUSY}
    servers = {
        name: Server(type("OfTest", (Host,), {"refusals": times, "tries": Counter()}))
        for name, times in refusals.items()
    }
    yield servers
    for server in servers.values():
        server.end()


def base(root: Path) -> dict[str, Any]:
    datasets.write_folder(root / "target", range(1000, 1012))
    return {
        "target": {"kind": "image_folder", "path": str(root / "target")},
        "encoder": {"backbone": "resnet18", "image_px": 32, "crop_fraction": 1.0},
        "embed": {"unit_images": 100, "attempts": 2},
        "coreset": {"clusters": 5, "tau": None, "budget": 10},
        "output": str(root / "run"),
    }


def list_of(root: Path, name: str, server: Server) -> dict[str, Any]:
    path = root / f"{name}.txt"
    path.write_text("".join(f"{server.url}/{seed}\n" for seed in range(IMAGES)))
    return {"name": name, "kind": "url_list", "path": str(path), "allow_private": True}


def test_what_comes_later_is_waited_for_and_what_does_not_is_named(
    tmp_path: Path,
    ray_session: None,
    hosts: dict[str, Server],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stage, "FIRST_PAUSE_S", 0.01)
    document = base(tmp_path)
    document["open"] = [list_of(tmp_path, name, server) for name, server in hosts.items()]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))

    assert cli.main(["run", str(tmp_path / "config.yaml")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"1 units (of {IMAGES} images and more) could not be read now" in last
    assert f"the first for {hosts['never'].url}/" in last and "run the same command again" in last
    tries = {name: server.RequestHandlerClass.tries for name, server in hosts.items()}
    seeds = [f"/{seed}" for seed in range(IMAGES)]
    assert tries["steady"] == dict.fromkeys(seeds, 1)
    assert tries["later"] == tries["never"] == dict.fromkeys(seeds, 2)
    opened = Run.open(document["output"])
    _, rows = opened.ledger.rows_of(opened.plan.digests)
    names = opened.plan.table["source"].to_pylist()
    assert {name for name, row in zip(names, rows, strict=True) if row < 0} == {"never"}

    hosts["never"].RequestHandlerClass.refusals = 0
    summary = run(config.parse(document, "test"))
    assert summary.embedded_now == IMAGES
    for name in hosts:
        counts = summary.sources.open[name]
        assert (counts.seen, counts.embedded, counts.rejected) == (IMAGES, IMAGES, 0)
    assert tries["steady"] == dict.fromkeys(seeds, 1), "what is done is not read again"


def test_an_image_that_went_since_the_plan_is_no_reject(tmp_path: Path, ray_session: None) -> None:
    document = base(tmp_path)
    datasets.write_folder(tmp_path / "folder", range(40))
    document["open"] = [{"name": "folder", "kind": "image_folder", "path": f"{tmp_path}/folder"}]
    document["embed"]["unit_images"] = 8
    settings = config.parse(document, "test")
    encoder = encoders.build(settings.encoder)
    begun = Run.begin(settings, {"device": "cpu"})
    gone = tmp_path / "folder" / "a" / "deeper" / "0010.png"
    gone.unlink()
    with pytest.raises(CurateError, match=rf"^1 units .* for {gone}: gone since it was planned\."):
        embed(begun, encoder)
    _, rows = Run.open(document["output"]).ledger.rows_of(begun.plan.digests)
    assert (rows >= 0).sum() == len(begun.plan) - 1

    with pytest.raises(CurateError, match=rf"1 gone: {gone}\. Put .* --accept-changes"):
        Run.begin(settings, {"device": "cpu"})
    resumed = Run.begin(settings, {"device": "cpu"}, accept_changes=True)
    embed(resumed, encoder)
    counts = resumed.counts().open["folder"]
    assert (counts.seen, counts.embedded, counts.rejected) == (39, 39, 0)
