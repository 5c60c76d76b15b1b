"""One driver an output: a lock file beside the run's, with its owner and a heartbeat.

    create run.lock ─there already─> process gone, or heart still? ─yes─> remove, create, look again
           │                                     │ no
    beat; remove at the end              refused: who holds it, and what to do

Clocks of two machines differ: a heart is still when the file, watched, does not change.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone

from curate import storage
from curate.errors import CurateError, one_line
from curate.runfiles.files import RunFiles

log = logging.getLogger(__name__)

BEAT_S = 10.0
STALE_S = 60.0  # without a beat
SETTLE_S = 2.0  # longer than another needs from its last look at a stale lock to its removal


@dataclass(frozen=True)
class Owner:
    """What the lock says."""

    id: str
    what: str  # run, pretrain, compare
    host: str
    machine: str  # where its pid means something: this boot, this container
    pid: int
    started: str  # of the process; a pid is given again
    user: str
    command: str
    since: float  # seconds since 1970 by its own clock
    beat: int = 0
    beat_at: float = 0.0

    @staticmethod
    def me(what: str) -> Owner:
        command = storage.public_text(" ".join(sys.argv))
        process = (os.getpid(), _started(os.getpid()) or "")
        now = time.time()
        return Owner(
            *(uuid.uuid4().hex, what, platform.node(), _machine(), *process, _user(), command),
            since=now,
            beat_at=now,
        )

    @staticmethod
    def of(data: bytes) -> Owner | None:
        """None for what is no lock of ours."""
        try:
            return Owner(**json.loads(data))
        except (ValueError, TypeError):
            return None

    def to_bytes(self) -> bytes:
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def is_gone(self) -> bool:
        """Whether its process, on this very machine, has ended; unknown of other machines."""
        return self.machine == _machine() and _started(self.pid) != self.started

    def __str__(self) -> str:
        times = (datetime.fromtimestamp(at, timezone.utc) for at in (self.since, self.beat_at))
        since, beat = (f"{at:%Y-%m-%d %H:%M:%S} UTC" for at in times)
        return (
            f"curate {self.what} of {self.user} on {self.host}, pid {self.pid}, since {since}, "
            f"last heartbeat {beat}"
        )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def _machine() -> str:
    """Of a process's id: host, boot, and the container's own numbering."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{platform.node()} {file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return platform.node()


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None where there is none any more."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *fields = file.read().rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else fields[18].decode()
    except FileNotFoundError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return None if os.path.exists("/proc/self") else ""


class _Held:
    """The lock of one folder, in this process."""

    def __init__(self, uri: str, owner: Owner) -> None:
        self.uri = uri
        self.owner = owner
        self.depth = 1
        self.lost_to: str | None = None
        self._end = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._heart.start()

    def _beat(self) -> None:
        while not self._end.wait(BEAT_S):
            try:
                self._renew()
            except Exception as error:  # a store that is away: others cannot read there either
                log.warning("%s: %s", self.uri, one_line(error))
            if self.lost_to and not self._end.is_set():
                log.error("%s; this process stops", self.lost_to)
                _interrupt()
                return

    def _renew(self) -> None:
        found = _read(self.uri)
        beat = replace(self.owner, beat=self.owner.beat + 1, beat_at=time.time())
        if found is None:  # somebody tidied up
            mine = storage.create_bytes(self.uri, beat.to_bytes())
        elif mine := _is(found, self.owner):
            storage.write_bytes(self.uri, beat.to_bytes())
        if mine:
            self.owner = beat
        else:
            self.lost_to = f"{self.uri}: taken by {_named(_read(self.uri))}"

    def release(self) -> None:
        self._end.set()
        self._heart.join()
        try:
            if _is(_read(self.uri), self.owner):
                storage.remove_tree(self.uri)
        except Exception as error:  # it goes stale by itself
            log.warning("%s: not removed: %s", self.uri, one_line(error))


_held: dict[str, _Held] = {}  # of this process, by URI
_guard = threading.Lock()


@contextmanager
def held(folder: str, what: str = "run") -> Iterator[None]:
    """No other driver's while the block runs. Within one process it may be held again.

    Raises CurateError, naming who holds it, where another does, or has taken it meanwhile.
    """
    uri = RunFiles(folder.rstrip("/")).lock
    with _guard:
        lock = _held.get(uri)
        if lock is not None:
            lock.depth += 1
        else:
            lock = _held[uri] = _Held(uri, _acquire(uri, Owner.me(what)))
    try:
        yield
    except BaseException:
        if lock.lost_to is None:  # else what follows from that
            raise
    finally:
        with _guard:
            lock.depth -= 1
            if lock.depth == 0:
                del _held[uri]
                lock.release()
    if lock.lost_to:
        raise CurateError(f"{lock.lost_to}; wait until it is done, then run the same command again")


def _acquire(uri: str, me: Owner) -> Owner:
    took_over = False
    while True:
        # A store's client may try twice, and be refused by what its first try wrote
        if storage.create_bytes(uri, me.to_bytes()) or _is(_read(uri), me):
            if not took_over:
                return me
            time.sleep(SETTLE_S)
            if _is(_read(uri), me):
                return me
        found = _read(uri)
        if found is None:
            continue
        _wait_until_stale(uri, found)
        if _read(uri) == found:
            log.warning("%s: taken over from %s, which is gone", uri, _named(found))
            storage.remove_tree(uri)
            took_over = True


def _wait_until_stale(uri: str, found: bytes) -> None:
    """Returns when nobody holds it. Raises CurateError when somebody does."""
    owner = Owner.of(found)
    if owner is not None and owner.is_gone():
        return
    still_s = abs(time.time() - owner.beat_at) if owner else STALE_S
    if still_s >= STALE_S:
        log.info("%s: of %s; watching it for %.0f s", uri, _named(found), STALE_S)
        end = time.monotonic() + STALE_S
        while time.monotonic() < end:
            time.sleep(min(STALE_S / 20, max(0.0, end - time.monotonic())))
            now = _read(uri)
            if now is None:
                return
            if now != found:
                found = now
                break
        else:
            return
    folder = uri.rpartition("/")[0]
    raise CurateError(
        f"{folder}: in use by {_named(found)}; wait for it, stop it, or set another output"
    )


def _read(uri: str) -> bytes | None:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        return None


def _is(found: bytes | None, owner: Owner) -> bool:
    there = Owner.of(found) if found else None
    return there is not None and there.id == owner.id


def _named(found: bytes | None) -> str:
    return str((Owner.of(found) if found else None) or "an unknown owner")


def _interrupt() -> None:
    """As Ctrl-C does it, the main thread woken from what it waits for; where that is ignored, as
    of a shell's background job, the process ends."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        os.kill(os.getpid(), signal.SIGTERM)
    elif (main := threading.main_thread().ident) is not None:
        signal.pthread_kill(main, signal.SIGINT)
