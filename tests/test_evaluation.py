"""`curate evaluate` on real files, against scikit-learn on features computed another way."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from curate import config, encoders
from curate.cli import main
from curate.encoders import Embedder
from curate.errors import CurateError
from curate.evaluation import evaluate
from curate.settings import EncoderSettings
from tests.datasets import picture

CLASSES = ("blue", "green", "red")


def write_labelled(
    root: Path, per_class: int, seed: int, classes: tuple[str, ...] = CLASSES
) -> None:
    """Pictures of smooth noise, tinted: an untrained network tells most of them apart."""
    for number, name in enumerate(classes):
        for i in range(per_class):
            path = root / name / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.asarray(Image.open(io.BytesIO(picture(seed + 100 * number + i, 32))))
            tinted = pixels.astype(np.int64)
            tinted[..., number % 3] += 120
            Image.fromarray(tinted.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("labelled")
    write_labelled(root / "train", 12, 0)
    write_labelled(root / "test", 8, 5000)
    encoder = encoders.build(EncoderSettings(backbone="resnet18", image_px=32, seed=3))
    encoder.save(str(root / "encoder" / "encoder.safetensors"))
    card = {"backbone": "resnet18", "image_px": 32}
    (root / "encoder" / "encoder.json").write_text(json.dumps(card))
    source = {"kind": "image_folder", "path": str(root / "train")}
    return {
        "target": source,
        "open": [{"name": "none", **source}],
        "encoder": {"backbone": "resnet50", "image_px": 224, "crop_fraction": 1.0},
        "evaluate": {
            "encoder": str(root / "encoder"),
            "train": source,
            "test": {"kind": "image_folder", "path": str(root / "test")},
            "k": [1, 5],
            "seeds": 2,
        },
        "output": str(root / "run"),
    }


def changed(document: dict[str, Any], tmp_path: Path, **changes: Any):
    evaluated = {**document["evaluate"], **changes}
    return config.parse(
        {**document, "evaluate": evaluated, "output": str(tmp_path / "run")}, "test"
    )


def features_and_labels(root: Path, encoder: str) -> tuple[np.ndarray, np.ndarray]:
    settings = EncoderSettings(
        backbone="resnet18", image_px=32, crop_fraction=1.0, checkpoint=encoder
    )
    embedder = Embedder(encoders.build(settings), "cpu", 256)
    paths = sorted(root.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    labels = np.array([CLASSES.index(path.parent.name) for path in paths])
    return embedder(pixels).astype(np.float64), labels


def test_figures_equal_scikit_learn(document, ray_session) -> None:
    found = {result.metric: result for result in evaluate(config.parse(document, "test"))}
    root = Path(document["target"]["path"]).parent
    train, labels = features_and_labels(root / "train", document["evaluate"]["encoder"])
    test, test_labels = features_and_labels(root / "test", document["evaluate"]["encoder"])
    for k in (1, 5):
        model = KNeighborsClassifier(
            k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
        )
        expected = model.fit(train, labels).score(test, test_labels)
        # The embedder rounds to float16, which may turn one close vote
        assert found[f"kNN, k = {k}, top1"].value == pytest.approx(expected, abs=1.1 / 24)
    probe = found["linear probe, top1"]
    assert probe.n == 24 and probe.seeds == 2 and len(probe.config["C"]) == 2
    assert probe.value > 0.5  # chance is a third
    written = json.loads((Path(document["output"]) / "evaluate" / "results.json").read_text())
    assert [row["metric"] for row in written["results"]] == list(found)
    assert written["encoder"] == document["evaluate"]["encoder"]
    assert {"metric", "value", "std", "seeds", "n", "seconds", "config"} == set(
        written["results"][0]
    )


def test_command_prints_the_table(document, tmp_path, ray_session, capsys) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    arguments = ["evaluate", str(tmp_path / "run.yaml"), f"output={tmp_path}/run"]
    assert main([*arguments, "evaluate.protocols=[knn]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "metric" and len(lines) == 1 + 4
    assert lines[1].startswith("kNN, k = 1, top1")


def test_what_cannot_be_evaluated(document, tmp_path, ray_session) -> None:
    def refusal(**changes: Any) -> str:
        with pytest.raises(CurateError) as refused:
            evaluate(changed(document, tmp_path, **changes))
        return str(refused.value)

    source = {"kind": "image_folder"}
    write_labelled(tmp_path / "more", 2, 9000, (*CLASSES, "violet"))
    write_labelled(tmp_path / "one", 4, 9500, ("red",))
    more, one = ({**source, "path": str(tmp_path / name)} for name in ("more", "one"))
    bare = {**source, "path": str(tmp_path / "one" / "red")}
    assert refusal(test=more) == "evaluate.test: class violet is not in evaluate.train"
    assert refusal(train=one, test=one).startswith("evaluate.train: one class only, red")
    assert refusal(test=bare).startswith("evaluate.test: no image has a label")
    assert refusal(k=[37]) == "evaluate.k: k=37 neighbours of 36 images; lower k"
    assert "no such file" in refusal(encoder=str(tmp_path / "nowhere.pt"))
    with pytest.raises(CurateError, match="evaluate: missing; name labelled"):
        evaluate(config.parse({**document, "evaluate": None}, "test"))
