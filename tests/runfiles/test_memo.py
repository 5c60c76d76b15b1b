"""Equal inputs are found again; others are refused by what differs, or made anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate import __version__
from curate.errors import CurateError
from curate.runfiles.memo import Memo, digest

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
INPUTS = st.dictionaries(st.text(min_size=1), VALUES, max_size=4)


@pytest.fixture(params=["made.json", "config.yaml"])
def memo(request: pytest.FixtureRequest, tmp_path: Path) -> Memo:
    return Memo(str(tmp_path / "folder" / request.param))


@pytest.mark.parametrize("name", ["made.json", "config.yaml"])
@given(inputs=INPUTS, other=INPUTS)
def test_found_with_equal_inputs_alone(
    name: str, inputs: dict, other: dict, tmp_path_factory: pytest.TempPathFactory
) -> None:
    memo = Memo(str(tmp_path_factory.mktemp("memo") / name))
    assert memo.found(inputs) is None and not memo.refuse_other(inputs)
    memo.write(inputs, figure=3)
    document = memo.found(inputs)
    assert document is not None and document["figure"] == 3
    assert memo.refuse_other(inputs)
    assert (memo.found(other) is not None) == (list(other.items()) == list(inputs.items()))
    memo.forget()
    assert memo.found(inputs) is None


def test_what_differs_is_named(memo: Memo) -> None:
    memo.write({"encoder": {"px": 32, "mean": [0.5]}, "open": {"a": {"path": "x"}}})
    with pytest.raises(CurateError, match=r"folder: .* encoder\.px was 32, is 64; open\.a was set"):
        memo.refuse_other({"encoder": {"px": 64, "mean": (0.5,)}, "open": {"b": {}}})
    assert memo.refuse_other({"encoder": {"px": 32, "mean": (0.5,)}}), "of some keys alone"
    with pytest.raises(CurateError, match="Set another output, or do this"):
        memo.refuse_other({"encoder": 1}, "do this")


def test_another_layout_is_refused_and_never_found(memo: Memo) -> None:
    memo.write({"a": 1})
    text = Path(memo.uri).read_text()
    for old, written in (
        (text.replace(__version__, "9.9.9").replace("layout", "lay"), "9.9.9"),
        ("{versions: {curate: 0.1.0}, fingerprint: {}}" * memo.uri.endswith("yaml"), "0.1.0"),
    ):
        if old:
            Path(memo.uri).write_text(old)
            assert memo.found({"a": 1}) is None
            with pytest.raises(CurateError, match=f"written by curate {written}, whose files"):
                memo.refuse_other({"a": 1})


@pytest.mark.parametrize("text", ["[]", "3", "{", '"a"'])
def test_damage_is_named(memo: Memo, text: str) -> None:
    Path(memo.uri).parent.mkdir()
    Path(memo.uri).write_text(text)
    with pytest.raises(CurateError, match=r"(made\.json|config\.yaml): damaged: .*--fresh"):
        memo.read()


@given(INPUTS)
def test_a_digest_does_not_depend_on_the_order_of_keys(inputs: dict) -> None:
    assert digest(inputs) == digest(dict(reversed(inputs.items())))
    assert digest(inputs) != digest({**inputs, "one more": 1})
