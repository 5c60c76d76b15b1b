"""`curate compare` as a job: python jobs/compare.py --config CONFIG [key=value …]

ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/compare.py --config …
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# Python puts this folder first on the path, where `import curate` would find jobs/curate.py. The
# checkout goes there instead, so that the job also runs where the package is not installed.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "jobs"]
sys.path.insert(0, str(ROOT))

from curate.cli import add_run_options, compare_command, guarded  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, metavar="CONFIG")
    add_run_options(parser)
    sys.exit(guarded(parser.parse_args(), compare_command))
