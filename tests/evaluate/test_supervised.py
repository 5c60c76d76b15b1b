"""The parts of a supervised training, and the two protocols made of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from curate.dataset.training_set import TrainingSet
from curate.embedding import encoders
from curate.errors import CurateError
from curate.evaluate import descent, supervised
from curate.evaluate.accuracy import accuracy
from curate.evaluate.bench import labels_of, matched_labels
from curate.evaluate.descent import set_learning_rates, sgd
from curate.evaluate.features import features_of
from curate.evaluate.finetune import finetune, stratified
from curate.evaluate.sgd import sgd_probe
from curate.evaluate.supervised import crops, new_head, predicted_by, rows_of_batches
from curate.settings import FinetuneSettings, ImageSettings, SgdSettings
from tests.evaluate.labelled import UNREADABLE, bench, images_of, write_set

LABELS = np.array([0] * 10 + [1] * 25 + [2] * 4 + [-1] * 6)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return bench(tmp_path_factory.mktemp("supervised"))


def shuffled_labels() -> np.ndarray:
    return np.random.default_rng(5).permutation(LABELS)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.2, 0.33, 0.5, 0.9, 1.0])
def test_fractions_are_exact_in_every_class(fraction: float) -> None:
    labels = shuffled_labels()
    rows = stratified(labels, fraction, seed=1)
    assert len(set(rows.tolist())) == len(rows) and (np.diff(rows) > 0).all()
    expected = {0: max(1, round(10 * fraction)), 1: max(1, round(25 * fraction))}
    expected[2] = max(1, round(4 * fraction))
    assert Counter(labels[rows].tolist()) == expected


def test_fractions_are_nested_and_drawn_by_the_seed() -> None:
    labels = shuffled_labels()
    sets = [set(stratified(labels, f, seed=1).tolist()) for f in (0.1, 0.2, 0.5, 1.0)]
    assert all(small < large for small, large in pairwise(sets))
    assert sets[-1] == set(np.flatnonzero(labels >= 0).tolist())
    assert set(stratified(labels, 0.5, seed=2).tolist()) != sets[2]
    drawn = Counter(row for s in range(400) for row in stratified(labels, 0.2, s).tolist())
    of_class = [drawn[row] for row in np.flatnonzero(labels == 0).tolist()]
    assert min(of_class) > 40 and sum(of_class) == 800, "each image of a class as likely as others"


def test_an_epoch_has_each_image_once_in_even_batches() -> None:
    rows = np.array([3, 5, 8, 9, 11, 12, 20, 21, 22])
    steps = list(rows_of_batches(rows, seed=0, steps=7, batch_size=4))
    assert [len(step) for step in steps] == [3, 3, 3, 3, 3, 3, 3]
    for epoch in (0, 1):
        part = steps[3 * epoch : 3 * epoch + 3]
        assert {e for step in part for e, _ in step} == {epoch}
        assert sorted(row for step in part for _, row in step) == rows.tolist()
    assert [row for _, row in steps[0]] != [row for _, row in steps[3]]
    assert steps == list(rows_of_batches(rows, 0, 7, 4)) != list(rows_of_batches(rows, 1, 7, 4))
    [only] = rows_of_batches(rows, 0, 1, 100)
    assert len(only) == 9, "a set smaller than a batch makes one of itself"


def test_crops_are_anew_in_every_epoch_and_carry_their_labels(small) -> None:
    images = TrainingSet(small.train)
    labels = np.arange(len(images))  # a label of its own for each image
    rows = np.array([2, 17, 29])
    preprocessing = encoders.build(small.encoder).preprocessing

    def drawn(seed: int) -> list[dict[int, torch.Tensor]]:
        found = crops(
            images,
            labels,
            rows,
            preprocessing,
            ImageSettings(),
            seed=seed,
            steps=2,
            batch_size=3,
            device=CPU,
        )
        return [dict(zip(wanted.tolist(), pixels, strict=True)) for pixels, wanted in found]

    first, second = drawn(0)
    assert set(first) == set(second) == {2, 17, 29}
    assert first[2].shape == (3, 32, 32)
    for row in (2, 17, 29):
        assert not torch.equal(first[row], second[row])
        assert torch.equal(first[row], drawn(0)[0][row])
        # A crop of the image and no other: its tint is by far its strongest channel
        assert int(first[row].mean((1, 2)).argmax()) == images.labels[row]
    assert not torch.equal(first[2], drawn(1)[0][2])


def test_no_image_from_outside_stands_in_for_one_that_cannot_be_read(tmp_path: Path) -> None:
    images = images_of(3, 0)
    images[4] = (images[4][0], images[4][1], UNREADABLE)
    images[7] = (images[7][0], None, images[7][2])
    found = TrainingSet(write_set(tmp_path / "set", images))
    preprocessing = encoders.build(bench(tmp_path / "bench", 1, 1).encoder).preprocessing
    rows = np.array([3, 4])  # 5 would take the place of 4
    got = [
        wanted.tolist()
        for _, wanted in crops(
            found,
            np.arange(9),
            rows,
            preprocessing,
            ImageSettings(),
            seed=0,
            steps=3,
            batch_size=2,
            device=CPU,
        )
    ]
    assert got == [[3], [3], [3]]


def test_rates_are_shares_of_each_ones_own() -> None:
    body, head = torch.nn.Linear(2, 2), new_head(2, 2, seed=0)
    optimizer = sgd([(body, 0.01), (head, 0.5)], weight_decay=0.25, nesterov=True)
    set_learning_rates(optimizer, 0.5)
    set_learning_rates(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.001, 0.05])
    assert all(g["weight_decay"] == 0.25 and g["nesterov"] for g in optimizer.param_groups)


def test_a_head_is_drawn_by_its_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first, same, other = new_head(4, 3, 0), new_head(4, 3, 0), new_head(4, 3, 1)
    assert torch.equal(first.weight, same.weight) and not torch.equal(first.weight, other.weight)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_probe_as_the_authors_have_it(small, monkeypatch) -> None:
    """BatchNorm's averages move, the weights do not; the best epoch counts."""
    told = SgdSettings(preset="authors", epochs=4, batch_size=8, learning_rate=0.3)
    assert SgdSettings(preset="authors").batch_size == 256 and told.epoch == "best"
    seen, found = [], []

    def features(module, *given, **more):
        assert module.training
        seen.append({name: value.clone() for name, value in module.state_dict().items()})
        return features_of(module, *given, **more)

    def measured(*given):
        found.append(accuracy(*given))
        return found[-1]

    monkeypatch.setattr(supervised, "features_of", features)
    monkeypatch.setattr(supervised, "accuracy", measured)
    best = sgd_probe(small, told, seed=1)
    assert len(found) == 4 and best.top1 == max(one.top1 for one in found)
    before = encoders.build(small.encoder).module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], seen[-1][name])}
    assert moved and all(name.endswith(("mean", "var", "tracked")) for name in moved)
    with pytest.raises(ValidationError):
        SgdSettings(preset="theirs")


def test_the_probe_is_softmax_regression_on_the_crops(small, monkeypatch) -> None:
    """The whole protocol in NumPy: Nesterov steps on frozen features of the same crops."""
    told = SgdSettings(epochs=5, batch_size=8, learning_rate=0.3, weight_decay=0.01)
    heads = []
    monkeypatch.setattr(
        supervised, "predicted_by", lambda head, x: heads.append((head, x)) or predicted_by(head, x)
    )
    found = sgd_probe(small, told, seed=1)
    [(head, seen)] = heads

    encoder = encoders.build(small.encoder)
    train, test = small.open_sets()
    start = new_head(512, 3, seed=1)
    weights = np.c_[start.weight.detach().numpy(), start.bias.detach().numpy()].astype(np.float64)
    velocity = np.zeros_like(weights)
    steps = crops(
        train,
        train.labels,
        np.arange(30),
        encoder.preprocessing,
        small.limits,
        seed=1,
        steps=20,
        batch_size=8,
        device=CPU,
    )
    for step, (pixels, labels) in enumerate(steps):
        with torch.no_grad():
            x = encoder.module.eval()(pixels).double().numpy()
        x = np.c_[x, np.ones(len(x))]
        scores = np.exp(x @ weights.T)
        error = scores / scores.sum(1, keepdims=True) - np.eye(3)[labels.numpy()]
        gradient = error.T @ x / len(x) + 0.01 * weights
        velocity = 0.9 * velocity + gradient
        rate = 0.3 if step < 12 else 0.03 if step < 16 else 0.003
        weights -= rate * (gradient + 0.9 * velocity)
    got = torch.cat([head.weight, head.bias[:, None]], 1).detach().numpy()
    assert got == pytest.approx(weights, abs=2e-4)

    asked = features_of(
        encoder.module,
        encoder.preprocessing,
        small.limits,
        test,
        np.arange(len(test)),
        CPU,
        unit=False,
    )
    assert seen == pytest.approx(asked, abs=1e-4), "the encoder is as it was"
    predicted = (np.c_[asked, np.ones(len(asked))] @ weights.T).argmax(1)
    assert found.top1 == pytest.approx((predicted == test.labels).mean(), abs=1.1 / len(test))


def test_features_as_they_come_or_of_length_one(small) -> None:
    encoder = encoders.build(small.encoder)
    images = TrainingSet(small.test)
    raw, unit = (
        features_of(
            encoder.module,
            encoder.preprocessing,
            small.limits,
            images,
            np.arange(5),
            CPU,
            unit=unit,
        )
        for unit in (False, True)
    )
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert not np.allclose(lengths, 1) and unit == pytest.approx(raw / lengths, abs=1e-6)


def test_fine_tuning_learns_and_moves_the_encoder(small, monkeypatch) -> None:
    told = FinetuneSettings(epochs=12, batch_size=8, learning_rate=0.02)
    seen, steps = [], []
    features, rates = supervised.features_of, descent.set_learning_rates
    monkeypatch.setattr(
        supervised, "features_of", lambda *a, **k: seen.append(a[0]) or features(*a, **k)
    )
    monkeypatch.setattr(descent, "set_learning_rates", lambda o, f: steps.append(f) or rates(o, f))
    found, images = finetune(small, told, 1.0, seed=0)
    assert found.top1 > 0.6 and images == 30  # chance is a third
    before, after = encoders.build(small.encoder).module.state_dict(), seen[0].state_dict()
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert not torch.equal(before["bn1.running_mean"], after["bn1.running_mean"])
    assert len(steps) == 48 and steps[0] == 1 and steps[24] == pytest.approx(0.5)
    assert steps == sorted(steps, reverse=True) and steps[-1] < 0.01

    steps.clear()
    asked = []
    drawn = supervised.crops
    monkeypatch.setattr(supervised, "crops", lambda *a, **k: asked.append((a, k)) or drawn(*a, **k))
    _, images = finetune(small, told.model_copy(update={"epochs": 1}), 0.2, seed=0)
    assert images == 6 and len(steps) == 4, "as many steps as the whole set takes"
    rows = asked[0][0][2]
    assert Counter(TrainingSet(small.train).labels[rows].tolist()) == {0: 2, 1: 2, 2: 2}


def test_equal_seeds_give_equal_figures(small) -> None:
    told = FinetuneSettings(epochs=2, batch_size=8)
    assert finetune(small, told, 0.5, 3) == finetune(small, told, 0.5, 3)


def test_labels_mean_the_same_in_both_sets(tmp_path: Path) -> None:
    """A test set that lacks the first class has other numbers of its own."""
    train = write_set(tmp_path / "train", images_of(2, 0))
    images = [one for one in images_of(2, 50) if one[1] != "blue"]
    images.append(("bare.png", None, images[0][2]))
    found = labels_of(train, write_set(tmp_path / "test", images))
    assert found.classes == ["blue", "green", "red"]
    assert found.train.tolist() == [0, 1, 2, 0, 1, 2] and found.train_images == 6
    assert found.test.tolist() == [1, 2, 1, 2, -1] and found.test_images == 4


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    def refusal(train: list, test: list, section: str = "evaluate") -> str:
        sets = [
            TrainingSet(write_set(tmp_path / f"{name}{len(list(tmp_path.iterdir()))}", images))
            for name, images in (("train", train), ("test", test))
        ]
        with pytest.raises(CurateError) as refused:
            matched_labels(*sets, section)
        return str(refused.value)

    whole = images_of(2, 0)
    red = [one for one in whole if one[1] == "red"]
    bare = [(key, None, data) for key, _, data in whole]
    assert refusal(red, whole) == "evaluate.test: class blue is not in evaluate.train"
    assert refusal(red, whole, "probe") == "probe.test: class blue is not in probe.train"
    assert refusal(red, red) == "evaluate.train: one class only, red; two at least"
    assert refusal(bare, whole).startswith("evaluate.train: no image has a label")
    assert refusal(whole, bare).startswith("evaluate.test: no image has a label")


def test_an_encoder_of_another_architecture(small) -> None:
    other = replace(small, encoder=small.encoder.model_copy(update={"backbone": "resnet50"}))
    with pytest.raises(CurateError, match="not a resnet50: lacks"):
        sgd_probe(other, SgdSettings(epochs=1), 0)


def test_a_rate_that_is_too_high(small) -> None:
    with pytest.raises(CurateError) as refused:
        sgd_probe(small, SgdSettings(epochs=2, learning_rate=1e38), 0)
    assert str(refused.value).startswith("evaluate.sgd.learning_rate=1e+38: the loss is not finite")
