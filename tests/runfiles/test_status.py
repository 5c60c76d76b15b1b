"""status.json, and what `curate watch` makes of it."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import pytest

from curate import progress
from curate.cli import main
from curate.errors import CurateError
from curate.runfiles import status as module
from curate.runfiles.status import Reporter, Status
from curate.runfiles.watch import watch


def test_a_stage_from_its_first_unit_to_its_last(tmp_path: Path) -> None:
    output = str(tmp_path)
    with Reporter(output) as reporter:
        with reporter.stage("plan"):
            assert not list(tmp_path.iterdir())
        reporter.begin()
        with reporter.stage("embed"), progress.Progress("embed", units=4, done_before=1) as work:
            work.add(images=10, units=1, rejected=["empty", "empty", "damaged: cut"])
            work.fails("a.tar: 503")
            reporter.begin()
            found = Status.read(output)
            assert (found.state, found.stage, [*found.seconds]) == ("running", "embed", ["plan"])
            facts = found.progress
            assert facts is not None and (facts.done, facts.total, facts.images) == (2, 4, 10)
            assert facts.rejected == {"empty": 2, "damaged: cut": 1}
            assert facts.failed == {"a.tar: 503": 1}
            said = found.text(found.updated)
            assert "▸ embed" in said and "2 of 4 units, 10 images" in said
            assert said.index("3 images rejected") < said.index("2  empty") < said.index("1  dama")
            work.tries_again()
            work.add(images=5, units=2)
        with reporter.stage("select"):
            pass
    found = Status.read(output)
    assert (found.state, found.stage, found.error) == ("finished", None, None)
    assert [*found.seconds] == ["plan", "embed", "select"]
    facts = found.progress
    assert facts is not None and (facts.done, facts.images, facts.failed) == (4, 15, {})


def test_the_work_of_an_earlier_run_is_not_this_ones(tmp_path: Path) -> None:
    with progress.Progress("embed", units=1) as earlier:
        earlier.add(images=1, units=1)
    with Reporter(str(tmp_path)) as reporter, reporter.stage("plan"):
        reporter.begin()
    assert Status.read(str(tmp_path)).progress is None


def test_how_it_ended(tmp_path: Path) -> None:
    with pytest.raises(CurateError), Reporter(str(tmp_path)) as reporter:
        reporter.begin()
        with reporter.stage("embed"):
            raise CurateError("https://u:secret@host/a.tar: gone")
    found = Status.read(str(tmp_path))
    assert (found.state, found.stage) == ("failed", "embed")
    assert found.error is not None and "a.tar: gone" in found.error
    assert "secret" not in found.error


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CurateError), Reporter(str(tmp_path)) as reporter, reporter.stage("plan"):
        raise CurateError("no")
    assert not list(tmp_path.iterdir())


def test_a_stage_that_takes_long_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.05)
    with Reporter(str(tmp_path)) as reporter, reporter.stage("pretrain_encoder"):
        deadline = time.monotonic() + 20
        while not (tmp_path / "status.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert Status.read(str(tmp_path)).stage == "pretrain_encoder"


def test_silence_is_told_of() -> None:
    status = Status(stage="embed", started=1000.0, updated=1000.0)
    assert "no word" not in status.text(1000.0 + module.SILENT_S)
    assert "no word for 100 s" in status.text(1100.0)
    status.state = "finished"
    assert "no word" not in status.text(1100.0)


def test_watch_looks_until_the_end(tmp_path: Path) -> None:
    said = io.StringIO()
    with Reporter(str(tmp_path)) as reporter:
        with reporter.stage("embed"):
            reporter.begin()
            arguments = {"every_s": 0.02, "to": said}
            watcher = threading.Thread(target=watch, args=[str(tmp_path)], kwargs=arguments)
            watcher.start()
            while "▸ embed" not in said.getvalue():
                time.sleep(0.02)
        assert watcher.is_alive()
    watcher.join(20)
    assert not watcher.is_alive()
    assert said.getvalue().count("running, begun") == 1
    assert said.getvalue().count("finished, begun") == 1


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path), "--once"]) == 1
    said = capsys.readouterr().err
    assert "status.json: no such file" in said and said.count("\n") == 1
    (tmp_path / "status.json").write_text("{}")
    assert main(["watch", str(tmp_path), "--once"]) == 1
    assert "not as this version of curate writes it" in capsys.readouterr().err
