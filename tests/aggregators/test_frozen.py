"""Learned aggregators by name and as files."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fad import ConfigError, RunError
from fad.aggregators import Aggregator, learned, load, make, save

MODULE = """
import jax.numpy as jnp
from fad.aggregators import Aggregator

def scaled(*, rounds, start=0.5):
    def server(theta, state, mean, params, key):
        return theta * mean, state
    return Aggregator(lambda key: jnp.array(start), lambda params: (), server)

def wrong(*, rounds):
    return rounds
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_aggregators.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_aggregators"
    sys.modules.pop("own_aggregators", None)


def _equal(a, b):
    same = jax.tree.map(lambda x, y: bool((x == y).all()) and x.dtype == y.dtype, a, b)
    return all(jax.tree.leaves(same))


def test_roundtrip(tmp_path, getkey):
    theta = learned(rounds=7, hidden=(3,)).init_theta(getkey())
    path = save(tmp_path, theta, name="learned", rounds=7, hidden=(3,))
    assert path == tmp_path / "theta.npz"
    for place in (path, tmp_path, str(tmp_path)):
        aggregator, again = load(place)
        assert isinstance(aggregator, Aggregator)
        assert _equal(again, theta)


def test_a_user_function_and_a_bare_theta(tmp_path, own_module):
    name = f"{own_module}:scaled"
    assert float(make(name, rounds=2).init_theta(None)) == 0.5
    path = save(tmp_path / "x.npz", jnp.array(2.0), name=name, rounds=2, start=0.1)
    aggregator, theta = load(path, rounds=9)
    step, _ = aggregator.server(theta, (), jnp.array(3.0), None, None)
    assert float(step) == 6.0


def test_never_writes_nan(tmp_path):
    theta = {"mix": jnp.array([1.0, jnp.nan])}
    with pytest.raises(RunError, match=r"theta\['mix'\] is not finite, and nothing"):
        save(tmp_path, theta, name="learned", rounds=1)
    assert not list(tmp_path.iterdir())


def test_missing_file(tmp_path):
    with pytest.raises(RunError, match=r"theta\.npz: no such file\. Give the folder"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_other_file(tmp_path, content):
    path = tmp_path / "theta.npz"
    np.savez(path, x=np.ones(2)) if content is None else path.write_bytes(content)
    with pytest.raises(RunError, match="not a learned aggregator"):
        load(path)


def test_changed_aggregator(tmp_path, getkey):
    theta = learned(rounds=7, hidden=(3,)).init_theta(getkey())
    save(tmp_path, theta, name="learned", rounds=7, hidden=(4,))
    with pytest.raises(RunError, match="do not fit the aggregator 'learned'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("learnt", {}, "there is no such aggregator. Did you mean 'learned'"),
        ("nowhere_at_all:f", {}, "there is no module 'nowhere_at_all'"),
        ("own_aggregators:none", {}, "has no function 'none'"),
        ("own_aggregators:wrong", {}, "expected a fad.aggregators.Aggregator, got a"),
        ("own_aggregators:scaled", {"end": 1}, "it does not take rounds=3 and"),
        ("learned", {"width": 1}, "it does not take rounds=3 and"),
    ],
)
def test_make_refuses(own_module, name, options, message):
    with pytest.raises(ConfigError, match=message):
        make(name, rounds=3, **options)
