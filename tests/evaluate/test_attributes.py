"""Tables of attributes: how they are read and matched with images, and a head for each column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from curate.errors import CurateError
from curate.evaluate.attributes import attributes_by_key, attributes_of, read_table
from curate.evaluate.logistic import linear_probe
from curate.settings import AttributesSettings
from tests.evaluate.labelled import images_of, write_set

CSV = """key,breed,long_hair,legs,note
0012,collie,true,4,
0013,pug,false,4,seen
0014,collie,,NA,"a, b"
"""
READ = {
    "breed": {"0012": "collie", "0013": "pug", "0014": "collie"},
    "long_hair": {"0012": "True", "0013": "False"},
    "legs": {"0012": "4", "0013": "4"},
    "note": {"0013": "seen", "0014": "a, b"},
}


def settings(path: Path, **more: Any) -> AttributesSettings:
    return AttributesSettings(table=str(path), **more)


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(CSV)
    assert read_table(settings(tmp_path / "table.csv")) == READ
    columns = {
        "breed": ["collie", "pug", "collie"],
        "id": ["0012", "0013", "0014"],
        "long_hair": [True, False, None],
        "legs": [4.0, 4.0, float("nan")],  # as pandas writes whole numbers with some missing
        "note": ["", "seen", "a, b"],
    }
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    assert read_table(settings(tmp_path / "table.parquet", key_column="id")) == READ


def test_only_the_columns_that_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(CSV)
    found = read_table(settings(tmp_path / "table.csv", columns=["note", "breed"]))
    assert list(found) == ["note", "breed"] and found["breed"] == READ["breed"]


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    def refusal(text: str, name: str = "table.csv", **more: Any) -> str:
        (tmp_path / name).write_text(text)
        with pytest.raises(CurateError) as refused:
            read_table(settings(tmp_path / name, **more))
        return str(refused.value)

    assert "no column id; it has key, breed, long_hair, legs, note" in refusal(CSV, key_column="id")
    assert refusal(CSV, columns=["breed", "tail"]).endswith(
        "has no tail; it has breed, long_hair, legs, note"
    )
    assert "2 rows of key a" in refusal("key,b\na,1\nc,1\na,2\n")
    assert "height has 1.5, which names no class" in refusal("key,height\na,1.5\n")
    assert "no column beside key" in refusal("key\na\n")
    assert "not readable" in refusal("", name="table.parquet")
    assert "neither .csv nor .parquet" in refusal(CSV, name="table.txt")
    assert "not readable" in refusal("key,b\na,1\nb\n")
    with pytest.raises(CurateError, match="no such file"):
        read_table(settings(tmp_path / "nowhere.csv"))


def test_values_are_matched_by_key(tmp_path: Path) -> None:
    train = write_set(
        tmp_path / "train", images_of(2, 0)
    )  # blue/000, green/000, red/000, blue/001 …
    test = write_set(tmp_path / "test", images_of(1, 50))
    column = {
        "red/001.png": "yes",
        "red/000.png": "yes",
        "blue/000.png": "no",
        "blue/001.png": "no",
        "elsewhere.png": "maybe",
    }
    [found] = attributes_of({"warm": column}, train, test)
    assert found.name == "warm" and found.values == ["no", "yes"]
    assert found.train.tolist() == [0, -1, 1, 0, -1, 1]
    assert found.test.tolist() == [0, -1, 1] and found.test_images == 2


def test_attributes_that_nothing_can_be_learnt_from() -> None:
    def refusal(values: list[str | None], test_values: list[str | None]) -> str:
        keys = [f"train{i}" for i in range(len(values))]
        test_keys = [f"test{i}" for i in range(len(test_values))]
        pairs = zip(keys + test_keys, values + test_values, strict=True)
        # A column without fault beside it, whose keys are the images'
        fine = dict(zip(keys + test_keys, ["a", "a", "b", "b", *"aaaaa"], strict=False))
        table = {"fine": fine, "odd": {key: value for key, value in pairs if value is not None}}
        with pytest.raises(CurateError) as refused:
            attributes_by_key(table, keys, test_keys)
        return str(refused.value)

    two = ["a", "a", "b", "b"]
    assert "odd has one value only, a, in evaluate.train" in refusal(
        ["a", "a", "a", None], ["a", "a"]
    )
    assert "odd has no value in evaluate.train" in refusal([None] * 4, ["a", "b"])
    assert "odd: value c is in evaluate.test alone" in refusal(two, ["a", "c"])
    assert "odd: no image of evaluate.test has a value" in refusal(two, [None, None])
    assert "odd: value c has one image in evaluate.train" in refusal([*two, "c"], ["a", "b"])
    table = {"fine": {"a": "1", "b": "2"}}
    with pytest.raises(
        CurateError, match=r"no key is an image's of evaluate.train, whose first is x"
    ):
        attributes_by_key(table, ["x"], ["a"])
    with pytest.raises(CurateError, match=r"of evaluate.test, whose first is y; the table has a"):
        attributes_by_key(table, ["a", "b"], ["y"])


def test_a_head_sees_the_images_that_have_its_attribute() -> None:
    """One column is one axis of the features, the other another; unknown images are all wrong."""
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, 6)).astype(np.float32) for n in (90, 60))
    keys, test_keys = [str(i) for i in range(90)], [f"t{i}" for i in range(60)]
    table: dict[str, dict[str, str]] = {"first": {}, "second": {}}
    for names, rows in ((keys, train), (test_keys, test)):
        for i, (name, row) in enumerate(zip(names, rows, strict=True)):
            table["first"][name] = "high" if row[0] > 0 else "low"
            if i % 3:
                table["second"][name] = "high" if row[1] > 0 else "low"
    train[::3, 1] *= -1  # of images without the second attribute: a head that saw them would fail
    first, second = attributes_by_key(table, keys, test_keys)
    for one, axis, known in ((first, 0, slice(None)), (second, 1, np.arange(90) % 3 > 0)):
        found, chosen = linear_probe(train, one.train, test, one.test, seed=0)
        scaler = StandardScaler().fit(train[known])
        model = LogisticRegression(C=chosen, max_iter=1000)
        model.fit(scaler.transform(train[known]), train[known][:, axis] > 0)
        asked = one.test >= 0
        expected = model.score(scaler.transform(test[asked]), test[asked][:, axis] > 0)
        assert found.top1 == pytest.approx(expected) and found.top1 > 0.85
    assert (first.test_images, second.test_images) == (60, 40)
