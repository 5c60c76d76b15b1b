"""`curate select` on the embeddings of others, as a command."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.cli import main
from curate.coreset.ratio import estimate
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


def with_target(folder, *extra: str) -> list[str]:
    """The files a and c are the open set, b the target set."""
    return [
        *("select", "--embeddings", str(folder / "[ac].*"), "--target", str(folder / "b.arrow")),
        *("--output", str(folder / "out" / "coreset.parquet"), *extra),
    ]


@pytest.mark.parametrize("ratio", ["linear", "logistic", "kernel"])
def test_a_ratio_between_files(sets, ratio) -> None:
    folder, rows, _ = sets
    open_set = np.concatenate([rows[:20], rows[40:]])
    assert main(with_target(folder, "--method", "ratio", "--ratio", ratio, "--budget", "9")) == 0
    score = estimate(ratio, rows[20:40], open_set, 0)
    exact = score.exact(open_set.astype(np.float32))
    expected = np.argsort(-exact, kind="stable")[:9]
    table = pq.read_table(folder / "out" / "coreset.parquet")
    assert table["position"].to_pylist() == expected.tolist()
    assert table["similarity"].to_pylist() == exact[expected].tolist()
    about = json.loads(table.schema.metadata[b"curate"])
    assert about["method"] == "ratio" and about["coreset"]["ratio"] == ratio


@pytest.mark.parametrize(
    "extra",
    [
        ("--clusters", "3", "--tau", "none", "--budget", "7"),
        ("--method", "gate", "--gate", "3", "--clusters", "2", "--budget", "0.1", "--tau", "none"),
        ("--method", "resample", "--seed", "4", "--budget", "7"),
        ("--method", "random", "--budget", "7"),
    ],
)
def test_every_method_on_files(sets, extra) -> None:
    folder, *_ = sets
    assert main(with_target(folder, *extra)) == 0
    taken = pq.read_table(folder / "out" / "coreset.parquet")["position"].to_pylist()
    assert len(set(taken)) == len(taken) == (4 if "0.1" in extra else 7)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--method", "ratio"), "select: method ratio needs a budget"),
        (("--method", "best"), "select: method=best: must be 'simcore', 'ratio', "),
        (("--method", "gate", "--gate", "0.5", "--budget", "3"), "select: gate=0.5: "),
        (("--budget", "auto"), "budget auto is for methods ratio"),
        (("--method", "ratio", "--budget", "auto"), "needs 40 target images, not 20"),
    ],
)
def test_what_methods_refuse(sets, capsys, extra, message) -> None:
    folder, *_ = sets
    assert main(with_target(folder, *extra)) == 1
    assert message in capsys.readouterr().err


def test_settings_of_a_target_beside_centroids_are_refused(sets, capsys) -> None:
    folder, *_ = sets
    assert main(command(folder, "--method", "gate", "--gate", "2")) == 1
    assert "select: --method, --gate: only with --target" in capsys.readouterr().err


def test_embeddings_of_two_encoders(sets, capsys) -> None:
    folder, *_ = sets
    np.save(folder / "b.npy", unit_rows(np.random.default_rng(0), 30, 6))
    arguments = with_target(folder, "--method", "ratio", "--budget", "3")
    arguments[arguments.index(str(folder / "b.arrow"))] = str(folder / "b.npy")
    assert main(arguments) == 1
    assert "target embeddings of width 6, the open set's of width 8" in capsys.readouterr().err


def test_a_score_names_what_is_no_unit_row(sets, capsys) -> None:
    folder, *_ = sets
    np.save(folder / "a.npy", spoiled(4, 1.0))
    assert main(with_target(folder, "--method", "resample", "--budget", "3")) == 1
    assert "a.npy: the embedding in row 4 is of norm 2.828" in capsys.readouterr().err
