"""`curate select` on the embeddings of others, as a command."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.cli import main
from tests.oracles import brute_force_rounds, unit_rows


@pytest.fixture
def sets(tmp_path, ray_session):
    """Open set (60, 8) in three files, and (4, 8) centroids."""
    rng = np.random.default_rng(7)
    rows, centroids = unit_rows(rng, 60, 8, duplicates=0.2), unit_rows(rng, 4, 8)
    np.save(tmp_path / "a.npy", rows[:20])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows[20:40].reshape(-1)), 8)
    table = pa.table({"key": [f"k{i}" for i in range(20)], "embedding": lists})
    with pa.ipc.new_file(str(tmp_path / "b.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    lists = pa.array([row.astype(np.float32).tolist() for row in rows[40:]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"embedding": lists, "label": ["x"] * 20}), tmp_path / "c.parquet")
    np.save(tmp_path / "centroids.npy", centroids.astype(np.float32))
    return tmp_path, rows, centroids


def command(folder, *extra: str) -> list[str]:
    embeddings = [str(folder / "[abc].*")]
    return [
        *("select", "--embeddings", *embeddings),
        *("--centroids", str(folder / "centroids.npy")),
        *("--output", str(folder / "out" / "coreset.parquet"), *extra),
    ]


@pytest.mark.parametrize("extra", [("--budget", "23", "--tau", "none"), ("--tau", "0.8")])
def test_three_formats_select_as_defined(sets, extra) -> None:
    folder, rows, centroids = sets
    assert main(command(folder, *extra)) == 0
    tau = None if "none" in extra else 0.8
    budget = 23 if "--budget" in extra else None
    expected = brute_force_rounds(rows, centroids, tau=tau, budget=budget)
    names = [("a.npy", str(i)) for i in range(20)]
    names += [("b.arrow", f"k{i}") for i in range(20)]
    names += [("c.parquet", str(i)) for i in range(20)]
    table = pq.read_table(folder / "out" / "coreset.parquet")
    found = list(zip(table["source"].to_pylist(), table["key"].to_pylist(), strict=True))
    assert found == [names[row] for row, *_ in expected["rows"]]
    assert table["similarity"].to_pylist() == [w for *_, w in expected["rows"]]


def replace_npy(value: np.ndarray):
    return lambda folder: np.save(folder / "a.npy", value)


def spoiled(row: int, value: float) -> np.ndarray:
    rows = unit_rows(np.random.default_rng(0), 20, 8)
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (replace_npy(spoiled(3, np.nan)), "a.npy: the embedding in row 3 is NaN or infinite"),
        (replace_npy(spoiled(3, np.inf)), "a.npy: the embedding in row 3 is NaN or infinite"),
        (replace_npy(spoiled(4, 1.0)), "a.npy: the embedding in row 4 is of norm 2.828"),
        (replace_npy(unit_rows(np.random.default_rng(0), 5, 6)), "a.npy: embeddings of width 6"),
        (replace_npy(np.zeros(7)), "a.npy: embeddings are a float matrix"),
        (replace_npy(np.zeros((7, 8), np.int32)), "a.npy: embeddings are a float matrix"),
        (lambda f: (f / "b.arrow").write_bytes(b"nothing"), "b.arrow: not an Arrow IPC file"),
        (lambda f: (f / "c.parquet").write_bytes(b"PAR1"), "c.parquet: not a Parquet file"),
        (
            lambda f: pq.write_table(pa.table({"vector": [1.0]}), f / "c.parquet"),
            "c.parquet: no column 'embedding'; it has vector",
        ),
        (
            lambda f: pq.write_table(pa.table({"embedding": [[1.0], [0.6, 0.8]]}), f / "c.parquet"),
            "c.parquet: embeddings of differing widths",
        ),
        (
            lambda f: pq.write_table(pa.table({"embedding": [[1.0], None]}), f / "c.parquet"),
            "c.parquet: embedding has nulls",
        ),
        (lambda f: (f / "centroids.npy").unlink(), "centroids.npy: no such file"),
        (lambda f: (f / "centroids.npy").write_bytes(b"x"), "centroids.npy: not a .npy file"),
        (
            lambda f: np.save(f / "centroids.npy", np.full((2, 8), 2.0)),
            "centroids: row 0 has norm",
        ),
    ],
)
def test_bad_input_is_one_line_that_names_the_file(sets, capfd, spoil, message) -> None:
    folder, *_ = sets
    spoil(folder)
    assert main(command(folder)) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("curate: ") and message in line
    assert not (folder / "out").exists()


def test_nothing_matches(sets, capfd) -> None:
    folder, *_ = sets
    arguments = command(folder)
    arguments[2] = str(folder / "*.nothing")
    assert main(arguments) == 1
    assert "*.nothing: matches no file" in capfd.readouterr().err


def test_output_that_cannot_be_written(sets, capfd) -> None:
    folder, *_ = sets
    (folder / "out").write_text("in the way")
    assert main(command(folder)) == 1
    assert "coreset.parquet: cannot be written" in capfd.readouterr().err
