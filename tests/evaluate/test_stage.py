"""`curate evaluate` on real files, against scikit-learn on features computed another way."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from curate.cli import main
from curate.coreset.quality_on_ray import selection_quality
from curate.embedding import encoders
from curate.embedding.embedder import Embedder
from curate.errors import CurateError
from curate.evaluate.stage import EVALUATORS, evaluate, measure
from curate.pipeline import run
from curate.runfiles import shards
from curate.runfiles.run import Embedded, Run
from curate.settings import EncoderSettings, RunSettings
from curate.settings import load as config
from curate.settings.evaluation import OnLabelledSets, OnOwnData, Protocol
from tests.datasets import copy_run, picture, shards_of
from tests.evaluate import scenes

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


def changed(document: dict[str, Any], tmp_path: Path, **changes: Any) -> RunSettings:
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
    assert {"metric", "value", "std", "seeds", "n", "seconds", "config", "unit"} == set(
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


def test_heavy_protocols_side_by_side(document, tmp_path, ray_session) -> None:
    """What each one's figures are is tested with it; here that they come, with what they tell."""
    names = [path.relative_to(Path(document["target"]["path"])) for path in sorted_images(document)]
    rows = [f"{name},{'warm' if name.parts[0] == 'red' else 'cold'}" for name in names]
    (tmp_path / "table.csv").write_text("\n".join(["image,tone", *rows]) + "\n")
    settings = changed(
        document,
        tmp_path,
        protocols=["attributes", "sgd", "finetune"],
        sgd={"epochs": 4, "batch_size": 12, "learning_rate": 0.5},
        finetune={"fractions": [0.25, 1.0], "epochs": 2, "batch_size": 12},
        attributes={"table": str(tmp_path / "table.csv"), "key_column": "image"},
    )
    found = {result.metric: result for result in evaluate(settings)}
    whats = [
        *("attribute tone", "attributes, mean", "SGD probe"),
        *("fine-tuned on 25 %", "fine-tuned on 100 %"),
    ]
    kinds = ("top1", "mean per class")
    assert list(found) == [f"{what}, {kind}" for what in whats for kind in kinds]
    assert all(r.seeds == 2 and r.n == 24 and r.unit == "share" for r in found.values())
    assert found["fine-tuned on 25 %, top1"].config["images"] == 9
    assert found["fine-tuned on 100 %, top1"].config["images"] == 36
    assert found["SGD probe, top1"].config["epochs"] == 4
    assert found["SGD probe, top1"].value > 0.4 and found["SGD probe, top1"].seconds > 0

    tone = found["attribute tone, top1"]
    assert tone.config["values"] == ["cold", "warm"]
    root = Path(document["target"]["path"]).parent
    train, labels = features_and_labels(root / "train", document["evaluate"]["encoder"])
    test, test_labels = features_and_labels(root / "test", document["evaluate"]["encoder"])
    scaler = StandardScaler().fit(train)
    expected = [
        LogisticRegression(C=c, max_iter=1000)
        .fit(scaler.transform(train), labels == 2)
        .score(scaler.transform(test), test_labels == 2)
        for c in tone.config["C"]
    ]
    assert tone.value == pytest.approx(np.mean(expected), abs=1.1 / 24)
    assert found["attributes, mean, top1"].value == tone.value, "of a single column"


def sorted_images(document: dict[str, Any]) -> list[Path]:
    root = Path(document["target"]["path"])
    return [*sorted(root.rglob("*.png")), *(root / p for p in only_in_test(root))]


def only_in_test(root: Path) -> list[Path]:
    test = root.parent / "test"
    names = [path.relative_to(test) for path in sorted(test.rglob("*.png"))]
    return [name for name in names if not (root / name).exists()]


def dense(encoder: Any, told: Any, limits: Any, seed: int, device: Any) -> dict[str, float]:
    """What detection and segmentation give, in a moment."""
    assert encoder.feature_dim == 512 and limits.min_px == 8 and told.epochs == 12
    figures = {"mAP": 0.2 + 0.1 * seed, "IoU here": 0.5 if seed else np.nan, "IoU none": np.nan}
    return {**figures, "images": 7.0}


def test_figures_of_protocols_with_images_of_their_own(
    document, tmp_path, ray_session, monkeypatch
) -> None:
    monkeypatch.setattr("curate.evaluate.detection.detection", dense)
    place = {"images": "somewhere", "annotations": "elsewhere"}
    own = {"protocols": ["detection"], "train": None, "test": None}
    settings = changed(document, tmp_path, **own, detection={"train": place, "test": place})
    found = {result.metric: result for result in evaluate(settings)}
    assert list(found) == ["detection, mAP", "detection, IoU here"], "none that is nowhere"
    mean = found["detection, mAP"]
    assert (mean.value, mean.std) == (pytest.approx(0.25), pytest.approx(0.05))
    assert (mean.seeds, mean.n) == (2, 7) and mean.config["epochs"] == 12
    assert found["detection, IoU here"].value == 0.5


def test_the_table_has_the_protocols_that_the_settings_name() -> None:
    assert tuple(EVALUATORS) == get_args(Protocol)
    assert (*get_args(OnLabelledSets), *get_args(OnOwnData)) == get_args(Protocol)


def test_several_encoders_on_the_same_sets(document, tmp_path, ray_session) -> None:
    settings = changed(document, tmp_path, protocols=["knn"], k=[3])
    other = tmp_path / "other"
    encoders.build(EncoderSettings(backbone="resnet18", image_px=32, seed=8)).save(
        str(other / "encoder.safetensors")
    )
    (other / "encoder.json").write_text(json.dumps({"backbone": "resnet18", "image_px": 32}))
    folder = tmp_path / "sets"
    first = measure(settings, settings.evaluate, document["evaluate"]["encoder"], str(folder))
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = measure(settings, settings.evaluate, document["evaluate"]["encoder"], str(folder))
    second = measure(settings, settings.evaluate, str(other), str(folder))
    assert made == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert sum(path.name == "index.json" for path in made) == 2
    values = [[result.value for result in one] for one in (first, again, second)]
    assert values[0] == values[1] != values[2]
    assert not (tmp_path / "run").exists(), "results.json is the command's"


def test_encoders_that_do_not_fit(document, tmp_path, ray_session) -> None:
    """Of another input size, or another architecture than the config says."""
    vit = EncoderSettings(backbone="vit_tiny_patch16_224", image_px=64)
    encoders.build(vit).save(str(tmp_path / "vit.safetensors"))

    def refusal(**encoder: Any) -> str:
        changes = {**document, "encoder": encoder}
        settings = changed(changes, tmp_path, encoder=str(tmp_path / "vit.safetensors"))
        with pytest.raises(CurateError) as refused:
            evaluate(settings)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    other_size = refusal(backbone="vit_tiny_patch16_224", image_px=32)
    assert "pos_embed is (1, 17, 192)" in other_size and "set encoder.backbone and" in other_size
    assert "not a resnet18: lacks" in refusal(backbone="resnet18", image_px=64)


def test_what_the_other_protocols_refuse(document, tmp_path, ray_session, monkeypatch) -> None:
    """Before anything is computed."""
    monkeypatch.setattr("curate.evaluate.subject.features_of_part", None)
    monkeypatch.setattr("curate.evaluate.sgd.sgd_probe", None)

    def refusal(**changes: Any) -> str:
        with pytest.raises(CurateError) as refused:
            evaluate(changed(document, tmp_path, **changes))
        return str(refused.value)

    (tmp_path / "table.csv").write_text("key,tone\nsky.png,warm\nsea.png,cold\n")
    table = {"table": str(tmp_path / "table.csv")}
    first = ["sgd", "attributes"]
    assert "no key is an image's of evaluate.train, whose first is blue/000.png" in refusal(
        protocols=first, attributes=table
    )
    assert "has no form; it has tone" in refusal(
        protocols=first, attributes={**table, "columns": ["form"]}
    )
    one = {"kind": "image_folder", "path": str(tmp_path / "one")}
    write_labelled(tmp_path / "one", 4, 9500, ("red",))
    for name in ("sgd", "finetune"):
        assert "one class only, red" in refusal(protocols=[name], train=one, test=one)
    assert "k=99 neighbours of 36" in refusal(protocols=["sgd", "knn"], k=[99])
    assert "run/coreset.parquet: no such manifest; run `curate run` on this config" in refusal(
        protocols=["sgd", "selection"], oracle=["a"]
    )


@pytest.fixture(scope="module")
def curated(tmp_path_factory, merged_run) -> dict[str, Any]:
    return copy_run(merged_run[0], tmp_path_factory.mktemp("curated"))


def selection_of(document: dict[str, Any], *oracle: str) -> RunSettings:
    evaluated = {"protocols": ["selection"], "oracle": list(oracle)}
    return config.parse({**document, "evaluate": evaluated}, "test")


def test_selection_against_counting_by_hand(curated) -> None:
    output = Path(curated["output"])
    found = {result.metric: result for result in evaluate(selection_of(curated, "a", "class1"))}
    chosen = pq.read_table(output / "coreset.parquet").to_pylist()
    tables = [shards.read_arrow(str(p)) for p in shards_of(output, "open")]
    labels = [label for table in tables for label in table["label"].to_pylist()]
    base = sum(label in ("a", "class1") for label in labels) / len(labels)
    hits = sum(row["label"] in ("a", "class1") for row in chosen)
    assert found["oracle share"].value == pytest.approx(hits / len(chosen))
    assert found["oracle share of the open set"].value == pytest.approx(base)
    assert found["lift"].value == pytest.approx(hits / len(chosen) / base)
    assert found["recall"].value == pytest.approx(hits / (base * len(labels)))
    by_label = Counter(row["label"] for row in chosen if row["label"])
    shares = np.array(list(by_label.values())) / sum(by_label.values())
    assert found["entropy"].value == pytest.approx(-(shares * np.log2(shares)).sum())
    assert {name: n for name, n, _ in found["entropy"].config["top_classes"]} == by_label
    rounds = [row["round"] for row in chosen]
    assert [(n, upto) for n, upto, _ in found["oracle share"].config["by_round"]] == [
        (n, sum(r <= n for r in rounds)) for n in sorted(set(rounds))
    ]

    def embedded(set_name: str) -> tuple[list[tuple], np.ndarray]:
        places, rows = [], []
        for path in shards_of(output, set_name):
            for row in shards.read_arrow(str(path)).to_pylist():
                places.append((row["uri"], row["offset"], row["row"]))
                rows.append(row["embedding"])
        return places, np.array(rows, np.float64)

    places, open_rows = embedded("open")
    near = (open_rows @ embedded("target")[1].T).max(1)
    at = [places.index((row["uri"], row["offset"], row["row"])) for row in chosen]
    assert found["nearest-target similarity"].value == pytest.approx(near[at].mean(), abs=1e-6)
    sample = np.random.default_rng(0).choice(len(places), len(chosen), replace=False)
    assert found["the same of random images"].value == pytest.approx(near[sample].mean(), abs=1e-6)
    written = json.loads((output / "evaluate" / "results.json").read_text())
    assert written["encoder"] is None and written["results"][2]["unit"] == "ratio"
    assert found["lift"].unit == "ratio" and found["lift"].n == len(chosen)


def found_in(output: str) -> Embedded:
    return Run.open(output).embedded()


def test_selection_of_other_manifests(curated, tmp_path) -> None:
    output = curated["output"]
    whole = pq.read_table(Path(output) / "coreset.parquet")
    picked = whole.take([7, 0, 3]).to_pylist()
    pq.write_table(whole.take([7, 0, 3]), tmp_path / "three.parquet")
    found = selection_quality(found_in(output), str(tmp_path / "three.parquet"), {"a"})
    assert found.selected == 3
    assert found.oracle_share == sum(row["label"] == "a" for row in picked) / 3
    baseline = config.parse({**curated, "coreset": {"method": "random", "budget": 9}}, "test")
    run(baseline)
    found = selection_quality(found_in(output), f"{output}/coreset.parquet", {"a"})
    assert [(number, images) for number, images, _ in found.by_round] == [(0, 9)]
    run(config.parse(curated, "test"))

    strange = whole.to_pylist()[0] | {"uri": "elsewhere.png"}
    pq.write_table(
        whole.slice(1).from_pylist([strange], whole.schema), tmp_path / "strange.parquet"
    )
    with pytest.raises(CurateError, match="1 of its 1 images are not in the open set"):
        selection_quality(found_in(output), str(tmp_path / "strange.parquet"), {"a"})
    pq.write_table(whole.take([2, 2]), tmp_path / "twice.parquet")
    with pytest.raises(CurateError, match="it has an image twice"):
        selection_quality(found_in(output), str(tmp_path / "twice.parquet"), {"a"})
    (tmp_path / "text.parquet").write_text("no manifest")
    with pytest.raises(CurateError, match="not a manifest"):
        selection_quality(found_in(output), str(tmp_path / "text.parquet"), {"a"})
    with pytest.raises(CurateError, match="no such manifest; run `curate run`"):
        selection_quality(found_in(output), str(tmp_path / "none.parquet"), {"a"})
    with pytest.raises(CurateError, match="no run here"):
        selection_quality(found_in(str(tmp_path)), str(tmp_path / "three.parquet"), {"a"})


def test_selections_that_cannot_be_judged(curated, tmp_path) -> None:
    with pytest.raises(CurateError, match=r"evaluate.oracle: no image of the open set has any"):
        evaluate(selection_of(curated, "unicorn"))
    bare = {**curated, "open": [curated["open"][3]], "output": str(tmp_path / "bare")}
    bare["coreset"] = {"method": "all"}
    run(config.parse(bare, "test"))
    with pytest.raises(CurateError, match="no image of the open set has a label"):
        evaluate(selection_of(bare, "a"))


@pytest.mark.slow
def test_detection_and_segmentation_by_the_command(document, tmp_path, capsys, ray_session) -> None:
    train = scenes.write(tmp_path / "train", 6, 0)
    test = scenes.write(tmp_path / "test", 3, 100)

    def told(annotations: str, batch_size: int) -> dict[str, Any]:
        own = {
            name: {"images": str(root / "images"), "annotations": str(root / annotations)}
            for name, root in (("train", train), ("test", test))
        }
        return {**own, "image_px": 64, "epochs": 1, "batch_size": batch_size}

    evaluated = {
        "encoder": document["evaluate"]["encoder"],
        "protocols": ["detection", "segmentation"],
        "detection": told("boxes.json", 3),
        "segmentation": told("masks", 3),
        "seeds": 1,
    }
    changes = {"evaluate": evaluated, "output": str(tmp_path / "run")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**document, **changes}))
    assert main(["evaluate", str(tmp_path / "config.yaml")]) == 0
    table = capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "evaluate" / "results.json").read_text())["results"]
    metrics = {row["metric"]: row for row in found}
    assert {"detection, mAP", "detection, mAP50", "segmentation, mean IoU"} <= metrics.keys()
    for name, row in metrics.items():
        assert 0 <= row["value"] <= 1 and row["n"] == 3 and name in table
