"""What the jobs share: a command on the config that --config names, run from this checkout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# Python puts this folder first on the path, where `import curate` would find jobs/curate.py. The
# checkout goes there instead, so that a job also runs where the package is not installed.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "jobs"]
sys.path.insert(0, str(ROOT))

from curate import cli  # noqa: E402
from curate.options import add_config_options  # noqa: E402


def run(name: str) -> None:
    """Ends the process with the command's exit status."""
    about, command = cli.ON_CONFIG[name]
    parser = argparse.ArgumentParser(description=f"curate {name}: {about}")
    parser.add_argument("--config", required=True, metavar="CONFIG")
    add_config_options(parser, name)
    sys.exit(cli.guarded(cli.parsed(parser), command))
