"""The narrow model on the slices is the full one with the other units cut off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fad.submodels import find
from tests.submodels.models import PAIRS, shapes

pytestmark = pytest.mark.once
# Layers that know nothing of the other units: no norm over them, no attention's scale.
EXACT = ("mlp", "fednest_mlp", "fedavg_cnn", "fedsep_cnn", "char_lstm")


def _outgoing(place, shape):
    """Kernels have their inputs on the axis before the last."""
    return len(shape) > 1 and place.axis == len(shape) - 2


def _without(units, chosen, params):
    """Set the outgoing weights of all the units that are not chosen to zero."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    arrays = {jax.tree_util.keystr(path): np.array(x) for path, x in leaves}
    for group in units.groups:
        held = np.isin(np.arange(group.size), chosen[group.name])
        for place in group.places:
            x = arrays[place.leaf]
            if _outgoing(place, x.shape):
                mask = np.tile(np.repeat(held, place.after), place.before)
                at = [1] * x.ndim
                at[place.axis] = -1
                x *= mask.reshape(at)
    return tree.unflatten(arrays.values())


def _slice(x, keys):
    for axis, entries in (keys or {}).items():
        x = np.take(x, entries, axis)
    return x


@pytest.mark.parametrize("name", EXACT)
def test_the_narrow_model_on_the_slices_is_the_full_one_without_the_others(name, x64):
    del x64
    full, narrow, x = PAIRS[name]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes(full, x))
    data = rng.integers(10, size=x.shape)
    data = data if x.dtype == jnp.int32 else data.astype("float64")
    units = find(lambda p, x: full.apply({"params": p}, x), params, data)
    kept = units.fit(shapes(narrow, x))
    chosen = {
        name: np.sort(rng.permutation(size)[: kept[name]]).astype("int32")
        for name, size in units.sizes.items()
    }
    slices = jax.tree.map(_slice, params, jax.jit(units.keys)(chosen))
    apply = jax.jit(lambda params: full.apply({"params": params}, data))
    ours = jax.jit(narrow.apply)({"params": slices}, data)
    theirs = apply(_without(units, chosen, params))
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)
    assert np.abs(apply(params) - theirs).max() > 1e-3
