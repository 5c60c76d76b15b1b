"""Two more targets of the classes of open-tiny-imagenet: ten animals, ten structures.

    python docs/results/rules/make_targets.py DATA LISTS

Of each class's 250 images, by their keys: 20 are the target set, 100 (these among them) train the
probe, 50 test it, 100 stay in the open set. LISTS/NAME/{train,test}/CLASS/KEY.jpg, LISTS/NAME.csv
the target set, LISTS/drop.txt the 3,000 images that no selection may take, for `coreset.drop`.
"""

from __future__ import annotations

import csv
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

TARGETS = {
    "animals": (
        *("albatross", "bighorn", "bison", "boa_constrictor", "bullfrog"),
        *("chimpanzee", "cougar", "goldfish", "goose", "guinea_pig"),
    ),
    "structures": (
        *("barn", "beacon", "cliff_dwelling", "dam", "obelisk", "picket_fence"),
        *("suspension_bridge", "thatch", "triumphal_arch", "viaduct"),
    ),
}
OF_TARGET, TRAIN, TEST = 20, 100, 50


def main() -> None:
    data, lists = (Path(one).resolve() for one in sys.argv[1:])
    images: dict[str, dict[str, bytes]] = defaultdict(dict)
    for path in sorted((data / "open-tiny-imagenet").glob("*.tar")):
        with tarfile.open(path) as tar:
            found = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
        for name, bytes_ in found.items():
            key, _, extension = name.rpartition(".")
            if extension == "jpg":
                images[found[f"{key}.cls"].decode().strip()][key] = bytes_
    dropped = []
    for target, classes in TARGETS.items():
        rows = []
        for label in classes:
            keys = sorted(images[label])
            assert len(keys) == 250, (label, len(keys))
            for number, key in enumerate(keys[: TRAIN + TEST]):
                part = "train" if number < TRAIN else "test"
                uri = lists / target / part / label / f"{Path(key).name}.jpg"
                uri.parent.mkdir(parents=True, exist_ok=True)
                uri.write_bytes(images[label][key])
                dropped.append(f"tiny-imagenet/{key}")
                if number < OF_TARGET:
                    rows.append({"url": str(uri), "label": label})
        with open(lists / f"{target}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["url", "label"])
            writer.writeheader()
            writer.writerows(rows)
    (lists / "drop.txt").write_text("\n".join(dropped) + "\n")


if __name__ == "__main__":
    main()
