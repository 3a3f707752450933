"""Choosing units, and the slices that hold them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fad import FadError
from fad.submodels import find
from tests.submodels.models import PAIRS, shapes


def _model(params, x):
    """A hidden layer of 3, and one of 4 whose two halves (gates) are multiplied."""
    one, two = jnp.split(jnp.tanh(x @ params["a"]) @ params["b"], 2, -1)
    return (one * two) @ params["c"]


PARAMS = {
    "a": jnp.arange(6.0).reshape(2, 3),
    "b": jnp.arange(24.0).reshape(3, 8),
    "c": jnp.arange(8.0).reshape(4, 2),
}
UNITS = find(_model, PARAMS, jnp.ones((1, 2)))


def test_keys_are_the_entries_of_the_units_in_every_place():
    assert UNITS.sizes == {"a": 3, "b": 4}
    kept = UNITS.kept({"a": 0.5, "b": 0.5})
    assert kept == {"a": 2, "b": 2}
    chosen = {"a": jnp.array([2, 0]), "b": jnp.array([3, 1])}
    keys = jax.tree.map(lambda k: k.tolist(), UNITS.keys(chosen))
    assert keys == {
        "a": {1: [2, 0]},
        "b": {0: [2, 0], 1: [3, 1, 7, 5]},
        "c": {0: [3, 1]},
    }
    assert {k.dtype.name for k in jax.tree.leaves(UNITS.keys(chosen))} == {"int32"}
    assert jax.tree.map(lambda s: s.shape, UNITS.shapes(kept)) == {
        "a": (2, 2),
        "b": (2, 4),
        "c": (2, 2),
    }


def test_a_parameter_without_units_has_no_keys():
    params = {"bias": jnp.ones((1, 2)), "w": PARAMS}
    units = find(lambda p, x: _model(p["w"], x) + p["bias"], params, jnp.ones((1, 2)))
    keys = units.keys(units.choose("static", units.kept(1)))
    assert keys["bias"] is None
    assert keys["w"]["b"][1].tolist() == [*range(8)]
    assert units.shapes(units.kept(0.01))["bias"].shape == (1, 2)


def test_widths_of_all_groups_or_of_some():
    assert UNITS.kept(0.25) == {"a": 1, "b": 1}
    assert UNITS.kept({"b": 0.25}) == {"a": 3, "b": 1}
    with pytest.raises(FadError, match=r"kept\(width=.*Did you mean 'b'\? Known units"):
        UNITS.kept({"bb": 0.5})
    with pytest.raises(FadError, match=r"kept\(width=.*in \(0, 1\]"):
        UNITS.kept(0.0)


def test_rules_choose_by_their_input(getkey):
    kept, key = {"a": 2, "b": 3}, getkey()
    static = UNITS.choose("static", kept)
    assert {k: v.tolist() for k, v in static.items()} == {"a": [0, 1], "b": [0, 1, 2]}
    rolling = jax.jit(lambda r: UNITS.choose("rolling", kept, round=r))(5)
    assert {k: v.tolist() for k, v in rolling.items()} == {"a": [2, 0], "b": [1, 2, 3]}
    scores = {"a": jnp.array([1.0, 0.0, 2.0]), "b": jnp.array([0.0, 3.0, 2.0, 1.0])}
    learned = UNITS.choose("learned", kept, scores=scores)
    assert {k: v.tolist() for k, v in learned.items()} == {"a": [0, 2], "b": [1, 2, 3]}
    random = UNITS.choose("random", kept, key=key)
    again = UNITS.choose("random", kept, key=key)
    assert all((random[k] == again[k]).all() for k in kept)


def test_groups_draw_apart_and_clients_by_their_keys(getkey):
    params = {"a": jnp.ones((2, 64)), "b": jnp.ones((64, 64)), "c": jnp.ones((64, 2))}
    units = find(
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"],
        params,
        jnp.ones((1, 2)),
    )
    kept = units.kept(0.5)

    def client(key):
        return units.keys(units.choose("random", kept, key=key))

    keys = jax.jit(jax.vmap(client))(jax.random.split(getkey(), 2))
    assert keys["b"][0].shape == (2, 32)
    assert (keys["b"][0] != keys["b"][1]).any()
    assert (keys["b"][0][0] != keys["b"][0][1]).any()


def test_scores_are_norms_of_all_places(x64):
    del x64
    params = {k: np.asarray(v, "float64") for k, v in PARAMS.items()}
    gates = params["b"].reshape(3, 2, 4)
    expected = {
        "a": np.sqrt((params["a"] ** 2).sum(0) + (params["b"] ** 2).sum(1)),
        "b": np.sqrt((gates**2).sum((0, 1)) + (params["c"] ** 2).sum(1)),
    }
    scores = jax.jit(UNITS.scores)(params)
    for name, norm in expected.items():
        assert scores[name].dtype == jnp.float64
        np.testing.assert_allclose(scores[name], norm, rtol=1e-12)
    largest = UNITS.choose("magnitude", {"a": 1, "b": 2}, params=params)
    assert {k: v.tolist() for k, v in largest.items()} == {"a": [2], "b": [2, 3]}
    half = jax.tree.map(lambda v: jnp.asarray(v, jnp.bfloat16), params)
    assert jax.eval_shape(UNITS.scores, half)["a"].dtype == jnp.float32


def test_choices_that_do_not_fit_are_refused():
    kept = {"a": 2, "b": 3}
    with pytest.raises(FadError, match=r"choose\(rule='rollin'\).*mean 'rolling'\?"):
        UNITS.choose("rollin", kept)
    for rule, needed in {
        "rolling": "round",
        "random": "key",
        "magnitude": "params",
        "learned": "scores",
    }.items():
        with pytest.raises(FadError, match=rf"needs {needed}=..., which is missing"):
            UNITS.choose(rule, kept)
    with pytest.raises(FadError, match=r"choose\(kept=.*nothing for the units b\."):
        UNITS.choose("static", {"a": 1})
    for count in (0, 4, 1.0):
        with pytest.raises(FadError, match=r"kept\['a'\] is .*from 1 to the group's 3"):
            UNITS.shapes({"a": count, "b": 1})  # type: ignore
    scores = {"a": jnp.ones(3), "b": jnp.ones(3)}
    with pytest.raises(FadError, match=r"scores\['b'\] is float32\[3\].*array \[4\]"):
        UNITS.choose("learned", kept, scores=scores)
    with pytest.raises(FadError, match=r"keys: chosen\['a'\] is int 1; .*array \[k\]"):
        UNITS.keys({"a": 1, "b": jnp.arange(2)})  # type: ignore
    with pytest.raises(FadError, match=r"scores\(params=(.|\n)*params\['c'\].*missing"):
        UNITS.scores({"a": PARAMS["a"], "b": PARAMS["b"]})


@pytest.mark.parametrize("name", PAIRS)
def test_a_narrow_model_of_the_class_has_the_slices_shapes(name):
    full, narrow, x = PAIRS[name]
    units = find(lambda p, x: full.apply({"params": p}, x), shapes(full, x), x)
    kept = units.fit(shapes(narrow, x))
    cut = {name for name, size in units.sizes.items() if kept[name] < size}
    # The embedding of the recurrent network has a width of its own.
    assert set(units.sizes) - cut == ({"Embed_0"} if name == "char_lstm" else set())
    assert units.kept(1) == units.fit(shapes(full, x))


def test_a_mask_that_disagrees_with_a_layer_is_refused_with_path_and_sizes():
    narrow = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 5)), "d": jnp.ones(3)}
    message = (
        r"check: with the units \{'a': 2, 'b': 2\} the mask disagrees with a layer's "
        r"structure:\n  params\['b'\]: the slice is float32\[2,4\], the narrow model's "
        r"float32\[2,5\]\n  params\['c'\]: the slice is float32\[2,2\], the narrow "
        r"model's missing\n  params\['d'\]: the slice is missing, .* float32\[3\]\n"
    )
    with pytest.raises(FadError, match=message):
        UNITS.check(narrow, {"a": 2, "b": 2})
    narrow["c"] = jnp.ones((2, 2))
    with pytest.raises(FadError, match=r"Units.check: .*\n  params\['b'\]: .*\n"):
        UNITS.fit(narrow)
