"""Files that cannot be read now: dead links, or an outage?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from curate import storage
from curate.sources import Item, base
from curate.sources.base import read_files
from tests.servers import Handler, Server

NOBODY = "http://127.0.0.1:9"  # refuses connections


class Site(Handler):
    """/ok… is there, /gone… is not, /busy… is never served, /later… at the third try."""

    tries: Counter[str]

    def do_GET(self) -> None:
        self.tries[self.path] += 1
        status = {"/ok": 200, "/go": 404}.get(self.path[:3], 503)
        if self.path.startswith("/later") and self.tries[self.path] >= 3:
            status = 200
        self.send_response(status)
        self.send_header("Content-Length", str(len(self.path)))
        self.end_headers()
        self.wfile.write(self.path.encode())


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(storage, "RETRY_PAUSE_S", 0.001)
    monkeypatch.setattr(storage, "READ_PATIENCE_S", 0.3)
    monkeypatch.setattr(base, "FIRST_PATIENCE_S", 0.1)
    server = Server(type("Site", (Site,), {"tries": Counter()}))
    yield server.url
    server.end()


def items_of(*uris: str) -> list[Item]:
    return [Item(key=str(i), uri=uri) for i, uri in enumerate(uris)]


def read(*uris: str, last_attempt: bool = False) -> tuple[list[Item], str | None]:
    """The items, and what was raised after them."""
    given = []
    try:
        for item in read_files(items_of(*uris), 100, last_attempt=last_attempt):
            given.append(item)
    except storage.Unavailable as error:
        return given, str(error)
    return given, None


@pytest.mark.parametrize("last_attempt", [False, True])
def test_hosts_that_are_dead_are_rejects(site: str, last_attempt: bool) -> None:
    uris = [f"{NOBODY}/a?token=secret", *(f"{site}/ok{i}" for i in range(200)), f"{NOBODY}/b"]
    items, raised = read(*uris, last_attempt=last_attempt)
    assert raised is None and [item.uri for item in items] == uris
    assert [item.data for item in items[1:-1]] == [f"/ok{i}".encode() for i in range(200)]
    for item in (items[0], items[-1]):
        assert item.data is None and "ClientConnectorError" in str(item.error)
        assert "\n" not in str(item.error) and "secret" not in str(item.error)


def test_a_host_that_answers_for_others_is_read_again(site: str) -> None:
    uris = [f"{site}/ok", f"{site}/busy", f"{site}/gone"]
    items, raised = read(*uris)
    assert [item.data for item in items] == [b"/ok", None, None]
    assert raised is not None and raised.startswith(f"{site}/busy: ") and "503" in raised
    items, raised = read(*uris, last_attempt=True)
    assert raised is None and "503" in str(items[1].error) and items[2].error == "no such file"


@pytest.mark.parametrize("last_attempt", [False, True])
def test_no_web_at_all_rejects_nothing(site: str, last_attempt: bool) -> None:
    _, raised = read(f"{NOBODY}/a", f"{site}/busy", last_attempt=last_attempt)
    assert raised is not None


def test_a_list_of_what_is_gone_is_rejects(site: str) -> None:
    items, raised = read(f"{site}/gone1", f"{site}/gone2", f"{NOBODY}/a")
    assert raised is None and [item.error for item in items[:2]] == ["no such file"] * 2
    assert items[2].error


@pytest.mark.parametrize("known", [True, False])
def test_more_patience_with_who_has_answered(
    site: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "REMOTE_READS", 1)
    monkeypatch.setattr(base, "FIRST_PATIENCE_S", 0.0)
    monkeypatch.setattr(storage, "READ_PATIENCE_S", 60)
    items, _ = read(f"{site}/gone" if known else f"{NOBODY}/a", f"{site}/later")
    assert items[1].data == (b"/later" if known else None)


def test_local_files_between(site: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"local")
    items, raised = read(str(tmp_path / "a"), f"{site}/ok", str(tmp_path / "b"))
    assert raised is None and [item.data for item in items] == [b"local", b"/ok", None]
    assert items[2].error == "no such file"


def test_a_store_that_is_away_ends_the_unit(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOBODY)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    items, raised = read(f"{site}/ok", *(f"s3://bucket/{i}" for i in range(300)), last_attempt=True)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert [item.data for item in items] == [b"/ok"]
    assert raised is not None and raised.startswith("s3://bucket/0: EndpointConnectionError: ")
