"""A check of many seeds, where one may crash, hang or eat the memory: which one is told.

python -m tests.faults.bounded MODULE CHECK FIRST LAST: a JSON line a seed. The check is a function
of the module's, of a seed: what came of it in one word, or an exception for what must not be.
Its process is forked for `BATCH` seeds at a time; one that dies leaves the rest to the next.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

BATCH = 100
SEED_S = 10  # of time; 2,000 take less than that in all
MEMORY_BYTES = 512 << 20  # beside what the modules take

ROOT = Path(__file__).resolve().parents[2]


def outcomes(module: str, check: str, seeds: range, processes: int = 2) -> dict[int, str]:
    """Seed → what the check returned; of one that failed, a text that starts with FAILED.

    In processes of their own, which have neither Ray nor threads: both break when forked.
    """
    parts = [range(seeds.start + i, seeds.stop, processes) for i in range(processes)]
    command = [sys.executable, "-m", "tests.faults.bounded", module, check]
    workers = [
        subprocess.Popen(
            [*command, str(part.start), str(part.stop), str(part.step)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in parts
    ]
    lines = [line for worker in workers for line in worker.communicate()[0].splitlines()]
    found = dict(json.loads(line) for line in lines)
    assert found.keys() == set(seeds)
    return found


def _run(check: Callable[[int], str], seeds: list[int]) -> None:
    while seeds:
        batch = seeds[:BATCH]
        done = _forked(check, batch)
        for seed, outcome in done:
            print(json.dumps([seed, outcome]), flush=True)
        seeds = seeds[len(done) :]


def _forked(check: Callable[[int], str], seeds: list[int]) -> list[tuple[int, str]]:
    """Outcomes of the seeds up to the first that kills the process, which is among them."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        with os.fdopen(write_end, "w") as out:
            _child(check, seeds, out.fileno())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as lines:
        done: list[tuple[int, str]] = [(seed, outcome) for seed, outcome in map(json.loads, lines)]
    _, status = os.waitpid(child, 0)
    if len(done) < len(seeds):
        code = os.waitstatus_to_exitcode(status)
        died = "took too long" if code == -signal.SIGALRM else f"ended with {code}"
        done.append((seeds[len(done)], f"FAILED: {died}"))
    return done


def _child(check: Callable[[int], str], seeds: list[int], out: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for seed in seeds:
        signal.alarm(SEED_S)  # its default ends the process, also inside of a C library
        try:
            outcome = check(seed)
        except BaseException as error:
            outcome = f"FAILED: {type(error).__name__}: {error}"[:500]
        os.write(out, (json.dumps([seed, outcome]) + "\n").encode())
    signal.alarm(0)


def main() -> None:
    module, check, *numbers = sys.argv[1:]
    _run(getattr(importlib.import_module(module), check), list(range(*map(int, numbers))))


if __name__ == "__main__":
    from tests.faults import bounded  # checks may set its bounds, which are not those of __main__

    bounded.main()
