"""What sub-models cost, against counts of the narrow models themselves; masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fad import FadError
from fad.submodels import Costs, costs, find, masked
from tests.submodels.models import PAIRS, shapes


def of(model, x):
    def fn(params, x):
        return model.apply({"params": params}, x)

    return fn, shapes(model, x), x


@pytest.mark.parametrize("name", PAIRS)
def test_the_polynomial_gives_the_narrow_models_count(name):
    full, narrow, x = PAIRS[name]
    units, found, small = find(*of(full, x)), costs(*of(full, x)), costs(*of(narrow, x))
    kept = units.fit(shapes(narrow, x))
    shares = {group: kept[group] / size for group, size in units.sizes.items()}
    assert found.flops(shares) == pytest.approx(small.total, rel=1e-12)
    assert found.flops({}) == found.total > small.total
    assert found.sizes == units.sizes


def test_products_by_hand():
    """In a loop, a branch, a while, between the same units, and of no units."""
    h, n = 4, 3
    params = {"in": jnp.ones((2, h)), "loop": jnp.ones((h, h)), "out": jnp.ones((h, 5))}

    def model(p, x):
        z = jnp.tanh(x @ p["in"])
        z, _ = jax.lax.scan(lambda z, _: (jnp.tanh(z @ p["loop"]), None), z, length=7)
        z = jax.lax.cond(x.sum() > 0, lambda z: z @ p["loop"], lambda z: z, z)
        y = z @ p["out"]
        fixed = jax.lax.while_loop(lambda v: v.sum() > 9, lambda v: v @ v, jnp.eye(5))
        return y @ fixed

    found = costs(model, params, jnp.ones((n, 2)))
    assert found.products == {
        ("in",): 2 * n * 2 * h + 2 * n * h * 5,
        ("in", "in"): 8 * 2 * n * h * h,
        (): 2 * 5**3 + 2 * n * 5 * 5,
    }
    slope = jax.grad(lambda share: found.flops({"in": share}))(0.5)
    assert slope == found.products["in",] + found.products["in", "in"]


def test_convolutions_of_xla():
    """``conv_general_dilated`` costs as much as the product of patches."""

    def model(p, x):
        dims = ("NHWC", "HWIO", "NHWC")
        for kernel in (p["a"], p["b"]):
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=dims
            )
        return x.sum((1, 2))

    params = {"a": jnp.ones((3, 3, 2, 6)), "b": jnp.ones((3, 3, 6, 5))}
    found = costs(model, params, jnp.ones((1, 4, 4, 2)))
    assert found.products == {("a",): 2 * 16 * 9 * (2 * 6 + 6 * 5)}


@pytest.mark.parametrize("name", ["mlp", "fedsep_cnn", "char_lstm"])
def test_masked_inputs_and_all_places_give_one_model(name, x64):
    full, _, x = PAIRS[name]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes(full, x))
    data = rng.integers(10, size=x.shape)
    data = data if x.dtype == jnp.int32 else data.astype("float64")
    fn, _, _ = of(full, x)
    units = find(fn, params, data)
    masks = {
        k: jnp.asarray(rng.integers(2, size=n) * 1.0) for k, n in units.sizes.items()
    }
    run = jax.jit(lambda p, masks: fn(masked(units, p, masks), data))
    everywhere = masked(units, params, masks, places="all")
    ones = {name: jnp.ones(n) for name, n in units.sizes.items()}
    np.testing.assert_allclose(run(params, masks), run(everywhere, ones), atol=1e-12)
    if name == "mlp":  # who is off has the derivative of what it would add
        slope = jax.grad(lambda a: run(params, {**masks, **a}).sum())(masks)
        assert all((s != 0).any() for s in slope.values())


def test_what_is_refused():
    params = {"hidden": jnp.ones((3, 2)), "out": jnp.ones((2, 2))}
    units = find(
        lambda p, x: jnp.tanh(x @ p["hidden"]) @ p["out"], params, jnp.ones((5, 3))
    )
    masks = {"hidden": jnp.ones(2)}
    with pytest.raises(
        FadError, match=r"costs\(params=...\): expected a pytree of arr"
    ):
        costs(lambda p: p, {})
    with pytest.raises(FadError, match=r"Costs\.flops.*there are no units 'hiden'"):
        Costs({(): 1}, units.sizes).flops({"hiden": 0.5})
    with pytest.raises(FadError, match=r"masks\['hidden'\] is"):
        masked(units, params, {"hidden": jnp.ones(3)})
    with pytest.raises(FadError, match="places 'inputs' or 'all'; got 'outputs'"):
        masked(units, params, masks, places="outputs")  # type: ignore
    with pytest.raises(FadError, match="expected the whole model's parameters"):
        masked(units, {"hidden": jnp.ones((3, 2)), "out": jnp.ones((1, 2))}, masks)
