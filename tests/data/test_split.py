import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fad.data._split import Part, parse_split

pytestmark = pytest.mark.once

SHARDS = {"train": [40, 37, 50], "test": [7]}
BOUNDS = st.one_of(
    st.just(""),
    st.integers(-127, 127).map(str),
    st.integers(-100, 100).map("{}%".format),
    st.sampled_from(["33.3%", "-12.5%", "0.5%", "1_0"]),
    st.sampled_from(["1shard", "2shard", "-1shard", "3shard"]),
)


def _parse(spec):
    return parse_split("mnist", spec, SHARDS)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("train", [Part("train", 0, 127)]),
        ("train[:10%]", [Part("train", 0, 13)]),
        ("train[100:110]", [Part("train", 100, 110)]),
        ("train[80%:]", [Part("train", 102, 127)]),
        ("train[-5:]", [Part("train", 122, 127)]),
        ("train[:0]", [Part("train", 0, 0)]),
        ("train[:0shard]", [Part("train", 0, 0)]),
        ("train[1shard]", [Part("train", 40, 77)]),
        ("train[-1shard]", [Part("train", 77, 127)]),
        ("test+train[:1]", [Part("test", 0, 7), Part("train", 0, 1)]),
        ("test + test", [Part("test", 0, 7), Part("test", 0, 7)]),
        ("all", [Part("train", 0, 127), Part("test", 0, 7)]),
    ],
)
def test_parts(spec, parts):
    assert _parse(spec) == parts


@settings(derandomize=True, deadline=None, max_examples=300)
@given(BOUNDS, BOUNDS)
def test_rounds_as_tensorflow_datasets(start, stop):
    splits = pytest.importorskip("tensorflow_datasets.core.splits")
    infos = {
        name: splits.SplitInfo(
            name=name, shard_lengths=lengths, num_bytes=0, filename_template=None
        )
        for name, lengths in SHARDS.items()
    }
    spec = f"train[{start}:{stop}]"
    units = {x[-1:] for x in (start, stop) if x} & {"%", "d"}
    try:
        theirs = splits.AbstractSplit.from_spec(spec).to_absolute(infos)
        asked = [(t.from_ or 0, 127 if t.to is None else t.to) for t in theirs]
    except ValueError:
        asked = [(1, 0)]
    if len(units) > 1 or asked[0][0] > asked[0][1]:
        with pytest.raises(ValueError, match="split="):
            _parse(spec)
    else:
        assert [(p.start, p.stop) for p in _parse(spec)] == asked


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "+",
        "train[",
        "train[]",
        "train[:]",
        "train[5]",
        "train[5%]",
        "train[1:2:3]",
        "train[a:b]",
        "train[1.5:]",
        "train[:101%]",
        "train[:1.2.3%]",
        "train[10%:1shard]",
        "train test",
    ],
)
def test_refuses_what_is_no_split(spec):
    with pytest.raises(ValueError, match=r"split=.*\): this is not a split. Write 't"):
        _parse(spec)


@pytest.mark.parametrize("spec", ["valid", "train+valid[:5]", "all[:5]"])
def test_names_the_splits(spec):
    with pytest.raises(
        ValueError, match=r"no split '(valid|all)'. The splits are train, test\."
    ):
        _parse(spec)


@pytest.mark.parametrize("spec", ["train[:128]", "train[-128:]", "train[5:3]"])
def test_refuses_bounds_outside(spec):
    with pytest.raises(
        ValueError, match="expected a rising slice of the 127 rows of 'train'; got"
    ):
        _parse(spec)
