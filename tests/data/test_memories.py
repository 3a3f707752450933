"""What clients keep: as a dictionary would, and no more than was seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fad import DataError
from fad.data import ClientMemories

FIRST = {"c": np.array([1.0, 2.0], np.float32), "n": np.int32(3)}


def rows(values):
    return {
        "c": np.stack([np.full(2, v, np.float32) for v in values]),
        "n": np.array(values, np.int32),
    }


def test_reads_what_was_written_last_like_a_dictionary():
    rng = np.random.default_rng(0)
    memories, plain = ClientMemories(FIRST, num_clients=20), {}
    for t in range(30):
        clients = rng.permutation(20)[:5]
        memories.write(clients, rows(100 * t + clients))
        plain |= {int(c): 100 * t + int(c) for c in clients}
        asked = rng.permutation(20)[:7]
        got = memories.read(asked)
        for i, c in enumerate(asked.tolist()):
            if c in plain:
                assert (got["n"][i], *got["c"][i]) == (plain[c],) * 3
            else:
                assert (got["n"][i], *got["c"][i]) == (3, 1, 2)


def test_holds_those_that_were_seen_alone():
    memories = ClientMemories(FIRST, num_clients=100_000)
    assert memories.nbytes == 12
    memories.write(np.array([99_999, -1, 4]), rows([7, 8, 9]))
    assert memories.nbytes == 3 * 12
    assert memories.read(np.array([-1, 99_999, 4]))["n"].tolist() == [3, 7, 9]
    memories.write(np.array([4]), rows([1]))
    assert memories.nbytes == 3 * 12


def test_goes_on_from_its_state():
    memories = ClientMemories(FIRST, num_clients=9)
    memories.write(np.array([5, 2, 8]), rows([1, 2, 3]))
    again = ClientMemories(FIRST, num_clients=9)
    again.write(np.array([0]), rows([6]))
    again.restore(memories.state())
    everyone = np.arange(9)
    jax.tree.map(
        np.testing.assert_array_equal, again.read(everyone), memories.read(everyone)
    )
    again.write(np.array([1]), rows([4]))
    assert again.read(np.array([1, 5]))["n"].tolist() == [4, 1]
    assert memories.read(np.array([1]))["n"].tolist() == [3]


def test_a_part_without_numbers_comes_back_from_a_checkpoint():
    first = {"none": np.zeros(0, np.float32), "two": np.zeros(2, np.float32)}
    memories = ClientMemories(first, num_clients=3)
    memories.write(np.array([1]), jax.tree.map(lambda x: x[None] + 1, first))
    state = memories.state()
    state["rows"]["none"] = np.zeros((0, 0), np.float32)  # as Orbax stores nothing
    again = ClientMemories(first, num_clients=3)
    again.restore(state)
    assert again.read(np.array([1, 2]))["two"].tolist() == [[1, 1], [0, 0]]
    assert again.read(np.array([1, 2]))["none"].shape == (2, 0)


def test_nothing_to_keep_is_kept():
    memories = ClientMemories((), num_clients=3)
    memories.write(np.array([1]), ())
    assert (memories.read(np.array([1])), memories.nbytes) == ((), 0)


@pytest.mark.parametrize(
    ("clients", "values", "message"),
    [
        ([3, 3], rows([1, 2]), r"clients \[3\] stand in the cohort more than once"),
        ([9], rows([1]), "there is no client 9; expected numbers from 0 to 8"),
        ([-2], rows([1]), "there is no client -2"),
        ([1], rows([1, 2]), r"memory\['c'\] is .*; expected float32\[1, 2\]"),
        (
            [1],
            {**rows([1]), "n": np.ones(1, np.float32)},
            r"memory\['n'\] is .*; expected int32\[1\]",
        ),
    ],
)
def test_errors(clients, values, message):
    memories = ClientMemories(FIRST, num_clients=9)
    with pytest.raises(DataError, match=message):
        memories.write(np.array(clients), values)


@pytest.mark.parametrize("x", [3.0, jnp.zeros(3).dtype])
def test_keeps_arrays_alone(x):
    with pytest.raises(DataError, match=r"memory is .*expected arrays of numbers"):
        ClientMemories(x, num_clients=2)
    with pytest.raises(DataError, match=r"Keep jax\.random\.key_data of a key"):
        ClientMemories(jax.random.key(0), num_clients=2)
