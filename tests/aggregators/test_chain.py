"""The record's defaults, chains of aggregators, and a round's aggregation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from fad import aggregators
from fad.aggregators import Aggregator, Message, chain
from tests.aggregators.classical_runs import arguments, one_round, rounds

UPDATES = {
    "w": np.arange(12.0, dtype=np.float32).reshape(4, 3),
    "b": np.ones(4, np.float32),
}
WEIGHTS = np.array([1.0, 0.0, 2.0, 5.0], np.float32)


def scale(factor, name):
    """Scale at the client, undo it at the server, and report the first number."""

    def client(theta, state, memory, update, key):
        del theta, key
        scaled = jax.tree.map(lambda x: factor * x, update)
        first = jax.tree.leaves(scaled)[0].ravel()[0]
        return Message(scaled, first), memory + 1

    def server(theta, state, mean, params, key):
        value, report = mean
        return jax.tree.map(lambda x: x / factor, value), report

    return Aggregator(
        init=lambda params: jnp.zeros(()),
        client=client,
        server=server,
        init_client=lambda params: jnp.zeros((), jnp.int32),
        metrics=lambda state: {name: state},
    )


def test_the_default_is_the_weighted_mean():
    got = rounds(Aggregator(), [UPDATES], WEIGHTS, [range(4)])
    want = np.average(UPDATES["w"], axis=0, weights=WEIGHTS)
    np.testing.assert_allclose(got.steps[0]["w"], want, rtol=1e-6)
    assert got.metrics == [{}]


def test_a_sum_of_ones_own_gives_the_weighted_mean_too():
    doubled = Aggregator(total=lambda x: jax.tree.map(lambda s: 2 * s, fad.sum(x)))
    got = rounds(doubled, [UPDATES], WEIGHTS, [range(4)])
    want = 2 * np.average(UPDATES["w"], axis=0, weights=WEIGHTS)
    np.testing.assert_allclose(got.steps[0]["w"], want, rtol=1e-6)
    nobody = rounds(doubled, [UPDATES], 0 * WEIGHTS, [range(4)])
    np.testing.assert_array_equal(nobody.steps[0]["w"], 0)
    short = {"w": jnp.asarray(UPDATES["w"], jnp.bfloat16)}
    assert (
        rounds(doubled, [short], WEIGHTS, [range(4)]).steps[0]["w"].dtype
        == jnp.bfloat16
    )


def test_a_chain_goes_out_in_its_order_and_back_in_the_other():
    both = chain(scale(2.0, "first"), scale(8.0, "second"))
    ids = [[0, 2, 3], [1, 2, 3]]
    got = rounds(both, [UPDATES] * 2, WEIGHTS, ids)
    plain = rounds(Aggregator(), [UPDATES] * 2, WEIGHTS, ids)
    for a, b in zip(got.steps, plain.steps, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)
    # Reports are averaged over the clients of positive weight, all the same.
    first = jax.tree.leaves(UPDATES)[0]
    assert [float(m["first"]) for m in got.metrics] == pytest.approx(
        [2 * first[[0, 2, 3]].mean(), 2 * first[[2, 3]].mean()]
    )
    assert float(got.metrics[0]["second"]) == pytest.approx(16 * first[0])
    # The client of weight zero keeps its memory as it was.
    assert [m.tolist() for m in got.memories] == [[1, 0, 2, 2]] * 2


def test_theta_and_keys_are_each_parts_own():
    learned = aggregators.from_optax(optax.sgd(1.0))
    both = chain(learned, learned)
    theta = both.init_theta(jax.random.key(0))
    assert jax.tree.map(jnp.shape, theta) == ((), ())
    keys = []
    watching = Aggregator(
        client=lambda t, s, m, update, key: keys.append(key) or (update, m)
    )
    one = chain(watching, watching)
    one.client(((), ()), ((), ()), ((), ()), jnp.zeros(2), jax.random.key(0))
    assert keys[0] != keys[1]
    step, _ = both.server(
        (0.0, jnp.log(3.0)),
        both.init(jnp.zeros(2)),
        Message(jnp.ones(2), ((), ())),
        jnp.zeros(2),
        jax.random.key(0),
    )
    np.testing.assert_allclose(step, 3.0, rtol=1e-6)


def test_a_nan_client_is_left_out_or_refused():
    spoilt = {**UPDATES, "w": UPDATES["w"].copy()}
    spoilt["w"][2, 1] = np.inf
    both = chain(scale(2.0, "first"))
    got = rounds(both, [spoilt], WEIGHTS, [range(4)], nonfinite="exclude")
    without = rounds(both, [UPDATES], WEIGHTS, [[0, 1, 3]])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        (got.steps, got.metrics[0]["first"]),
        (without.steps, without.metrics[0]["first"]),
    )
    assert float(got.metrics[0]["excluded_clients"]) == 1
    assert got.memories[0].tolist() == [1, 0, 0, 1]
    blind = Aggregator(
        combine=lambda m, w, total: jax.tree.map(jnp.nan_to_num, fad.mean(m))
    )
    refused = rounds(blind, [spoilt], WEIGHTS, [range(4)])
    assert all(np.isnan(x).all() for x in jax.tree.leaves(refused.steps))
    # A client of weight zero may send what it likes.
    spoilt["w"][2, 1], spoilt["w"][1] = UPDATES["w"][2, 1], np.nan
    fine = rounds(both, [spoilt], WEIGHTS, [range(4)])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(fine.steps))


def test_what_is_sent():
    both = chain(scale(2.0, "first"))
    args = arguments(both, UPDATES, WEIGHTS)
    (row,) = fad.plan(one_round(both, "exclude"))(*args).rounds
    # The update, its weight, a report and its count, and whether a client is left out.
    assert sorted(w.nbytes for w in row.up) == [4, 4, 4, 4, 4, 12]
    assert fad.check(one_round(both))(*args).allowed == ()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "expected at least one aggregator, got none"),
        ((scale(2.0, "a"), scale), r"aggregators\[1\] is a function; expected a fad"),
        (
            (Aggregator(combine=max), Aggregator(), Aggregator(combine=min)),
            r"aggregators \[0, 2\] each have a combine of their own; expected at most",
        ),
        (
            (Aggregator(total=max), Aggregator(total=min)),
            r"aggregators \[0, 1\] each have a total of their",
        ),
    ],
)
def test_errors(parts, message):
    with pytest.raises(fad.FadError, match=r"chain\(\*aggregators\): " + message):
        chain(*parts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("geometric_mean", "no such aggregator. Did you mean 'geometric_median'"),
        ("clip(1.0)", "expected a name with options in brackets, each by its name"),
        ("clip(bound=open('x'))", "expected a name with options in brackets"),
        ("clip(", "expected a name with options in brackets"),
        ("clip(bond=1.0)", r"argument.* It is clip\(.*bound"),
        ("clip(bound=-1.0)", "bound"),
    ],
)
def test_errors_of_a_text(text, message):
    with pytest.raises(fad.ConfigError, match=message):
        aggregators.named(text)


def test_a_text_names_an_aggregator():
    made = aggregators.named("clip(bound=2.0)")
    message, _ = made.client((), made.init(jnp.zeros(1)), (), jnp.array([4.0]), None)
    assert message.value.tolist() == pytest.approx([2.0], rel=1e-5)


def test_a_chain_in_a_chain_is_the_flat_one():
    parts = [scale(2.0, "first"), aggregators.random_k(2), aggregators.clip(100.0)]
    ids = [[0, 2, 3], [1, 2, 3]]
    flat = rounds(chain(*parts), [UPDATES] * 2, WEIGHTS, ids)
    for nested in (
        chain(chain(parts[0], parts[1]), parts[2]),
        chain(parts[0], chain(parts[1]), parts[2]),
    ):
        got = rounds(nested, [UPDATES] * 2, WEIGHTS, ids)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            (got.steps, got.metrics),
            (flat.steps, flat.metrics),
        )


def ups(aggregator, updates=UPDATES):
    plan = fad.plan(one_round(aggregator))(*arguments(aggregator, updates, WEIGHTS))
    return plan.cost().bytes_up


def test_a_code_is_counted_where_nothing_changes_it():
    """Dense updates here are 16 bytes, and the weight and the NaN flag 8."""
    top, eight = aggregators.top_k(1), aggregators.rotated_quantisation(8, bound=9.0)
    assert ups(top) == 8 + 8
    assert ups(chain(aggregators.clip(9.0), top)) == 8 + 8 + 8  # a report, its count
    assert ups(chain(top, aggregators.clip(9.0))) == 16 + 8 + 8
    assert ups(chain(top, aggregators.geometric_median(passes=1))) == 2 * 20 + 4
    assert ups(chain(top, eight)) == ups(chain(eight))


def test_a_stage_behind_a_quantiser_is_not_undone():
    many = {"w": np.ones((4, 64), np.float32)}
    both = chain(aggregators.rotated_quantisation(1, bound=8.0), aggregators.clip(0.5))
    step = rounds(both, [many], np.ones(4, np.float32), [range(4)]).steps[0]["w"]
    assert np.linalg.norm(step) <= 0.5


def test_what_combines_may_report_anywhere_in_a_chain():
    both = chain(aggregators.krum(0), scale(2.0, "second"))
    got = rounds(both, [UPDATES], np.ones(4, np.float32), [range(4)])
    assert float(got.metrics[0]["too_few_clients"]) == 0
    assert any(np.allclose(got.steps[0]["w"], row) for row in UPDATES["w"])


def test_two_metrics_of_one_name_are_both_shown():
    both = chain(aggregators.clip(100.0), aggregators.clip(0.1))
    (metrics,) = rounds(both, [UPDATES], WEIGHTS, [range(4)]).metrics
    assert [float(x) for _, x in sorted(metrics.items())] == [0.0, 1.0]
    assert set(metrics) == {"clipped_fraction", "clipped_fraction_2"}
