"""The text on clients, their labels and their missing values."""

import itertools

import numpy as np
import pytest

from fad.data._describe import describe


def lines_of(examples, sizes, **options):
    return describe(examples, np.cumsum([0, *sizes]), **options).split("\n")


def test_sizes():
    (line,) = lines_of({"x": np.zeros(108, int)}, [0, 1, 7, 100])
    assert line == (
        "4 clients (1 empty), 108 examples; sizes min 0, median 4, mean 27, max 100"
    )
    (line,) = lines_of({"x": np.zeros(10, int)}, [1, 2, 7])
    assert line.startswith("3 clients, 10 examples; ")
    assert line.endswith("median 2, mean 3.3, max 7")


def test_label_entropy_is_over_the_clients_that_hold_something():
    y = np.array([0, 0, 0, 1, 1, 1, 0, 1])
    line = lines_of({"y": y}, [3, 0, 3, 2])[1]
    assert line == "label entropy 0.33 bits within clients, 1.00 overall"


def brute_force(y, sizes):
    clients = [part for part in np.split(y, np.cumsum(sizes)[:-1]) if len(part)]
    values = np.unique(y)
    shares = [(part[:, None] == values).mean(axis=0) for part in clients]
    pairs = [abs(a - b).sum() / 2 for a, b in itertools.combinations(shares, 2)]
    return np.mean(pairs)


@pytest.mark.parametrize("seed", range(5))
def test_label_distance_is_the_mean_over_all_pairs(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 6, 40)
    y = rng.integers(-3, 4, sizes.sum())
    line = lines_of({"y": y}, sizes)[2]
    assert line == (
        f"label distance {brute_force(y, sizes):.2f} between two clients (mean total "
        "variation, 0 to 1)"
    )


def test_one_client_has_no_distance():
    assert len(lines_of({"y": np.array([0, 1])}, [2, 0])) == 2


def test_labels_may_be_texts_and_have_another_name():
    label = np.array(["a", "b", "a", "b"])
    lines = lines_of({"kind": label}, [2, 2], label="kind")
    assert lines[1] == "label entropy 1.00 bits within clients, 1.00 overall"
    assert lines[2].startswith("label distance 0.00")


@pytest.mark.parametrize("y", [np.zeros(4), np.zeros((4, 2), int)])
def test_y_may_be_no_label(y):
    assert len(lines_of({"y": y}, [2, 2])) == 1


def test_many_clients_and_labels_take_little_memory():
    """A table clients × labels would have 2.5e9 cells."""
    y = np.arange(100_000) // 2
    lines = lines_of({"y": y}, np.full(50_000, 2))
    assert lines[1].startswith("label entropy 0.00 bits within clients, 15.61")
    assert lines[2].startswith("label distance 1.00")


def test_nan_is_reported_with_column_and_client():
    x = np.zeros((6, 3), np.float32)
    x[[1, 4, 5], 2] = np.nan
    x[5, 0] = np.nan
    examples = {"x": x, "t": np.array([np.nan, 0, 0, 0, 0, 0]), "n": np.arange(6)}
    sizes, names = [2, 1, 3], ("Cleveland", "Hungary", "Zurich")
    assert lines_of(examples, sizes, names=names)[1:] == [
        "NaN in x[:, 0]: 1 rows, at Zurich (1)",
        "NaN in x[:, 2]: 3 rows, at Cleveland (1), Zurich (2)",
        "NaN in t: 1 rows, at Cleveland (1)",
    ]
    assert lines_of(examples, sizes)[2].endswith("at client 0 (1), client 2 (2)")


def test_nan_of_many_columns_and_clients_stays_short():
    lines = lines_of({"x": np.full((9, 4, 5), np.nan)}, [1] * 9)
    assert len(lines) == 12
    assert lines[1] == (
        "NaN in x[:, 0, 0]: 9 rows, at client 0 (1), client 1 (1), client 2 (1), "
        "client 3 (1), client 4 (1), 4 more clients"
    )
    assert lines[-1] == "NaN in 10 more columns of x"


def test_nan_is_found_beyond_the_first_block():
    x = np.zeros(40_000)
    x[39_999] = np.nan
    assert lines_of({"x": x}, [39_000, 1000])[1] == "NaN in x: 1 rows, at client 1 (1)"


@pytest.mark.parametrize(
    ("label", "given"), [("kind", "no such name"), ("x", r"float64\[2\]")]
)
def test_refuses_a_label_that_is_none(label, given):
    match = (
        rf"describe\(label='{label}'\): expected the name of an array .* got {given}. "
        "There are 'x'"
    )
    with pytest.raises(ValueError, match=match):
        lines_of({"x": np.zeros(2)}, [1, 1], label=label)
