"""FedDF, DS-FL and Fed-ET against NumPy, which reads the logits themselves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms import dsfl, feddf, fedet
from algorithms._distill import Distillation, public_of
from tests.algorithms.test_fedprox import assert_same, half

D, H, C, V = 2, 4, 3, 6  # features, hidden units, classes, public examples
CLIENTS, STEPS, ROWS = 6, 2, 3
WIDTHS = (1.0, 0.5)  # places 0, 1 and 2, 3 of a cohort
COHORTS = ((0, 1, 2, 3), (1, 4, 5, 2), (0, 4, 3, 2))  # the client 3 has no examples
P, B, N = 4, 3, 2  # a round's examples, a batch of them, steps
LR, TEMPERATURE, DIVERSITY = 0.3, 0.7, 0.5


def init_at(width):
    hidden = fad.submodels.kept(H, width)

    def init(key):
        a, b = jax.random.split(key)
        return {
            "in": {
                "kernel": jax.random.normal(a, (D, hidden)),
                "bias": jnp.ones(hidden) / 2,
            },
            "out": {"kernel": jax.random.normal(b, (hidden, C)), "bias": jnp.zeros(C)},
        }

    return init


def logits(params, x):
    first, last = params["in"], params["out"]
    hidden = jnp.tanh(x.astype(first["kernel"].dtype) @ first["kernel"] + first["bias"])
    return hidden @ last["kernel"] + last["bias"]


def loss(params, examples):
    with jax.numpy_rank_promotion("allow"):
        z = jax.nn.log_softmax(logits(params, examples["x"]))
    return -jnp.take_along_axis(z, examples["y"][:, None], 1)[:, 0]


def rows_of(count, seed):
    rng = np.random.default_rng(seed)
    y = np.arange(count, dtype=np.int32) % C
    return {"x": rng.normal(size=(count, D)) + y[:, None], "y": y}


@functools.cache
def make_task(validation=True, width=1.0):
    return fad.data.Task(
        name="toy",
        train=fad.data.Federated(rows_of(9, 0), np.array([0, 5, 9])),
        test=rows_of(9, 1),
        validation=rows_of(V, 2) if validation else None,
        init=init_at(width),
        loss=loss,
        metrics=lambda params, e: {"loss": loss(params, e)},
        narrow=functools.partial(make_task, validation),
    )


def make_clients():
    """All clients' batches: the last is half padding, and the client 3 has nothing."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, C, (CLIENTS, STEPS, ROWS))
    y[:, :, 0] = np.arange(CLIENTS)[:, None] % C
    mask = np.ones((CLIENTS, STEPS, ROWS), bool)
    mask[::2, -1, 1:] = False
    mask[3] = False
    x = rng.normal(size=(CLIENTS, STEPS, ROWS, D)) + y[..., None]
    rows = {"x": jnp.asarray(x), "y": jnp.asarray(y, jnp.int32)}
    return fad.local.Batches(rows, jnp.asarray(mask), jnp.arange(CLIENTS))


def cohort_of(ids, clients=None):
    clients = make_clients() if clients is None else clients
    return fad.AtClients(jax.tree.map(lambda x: x[jnp.asarray(ids)], clients))


def make(module, lr=LR, distil=None):
    distil = distil or (optax.sgd(0.2) if module is dsfl else optax.adam(0.05))
    options = {
        feddf: {"temperature": TEMPERATURE},
        dsfl: {"temperature": TEMPERATURE},
        fedet: {"diversity": DIVERSITY},
    }[module]
    build = getattr(module, module.__name__.split(".")[-1])
    how = Distillation(distil, examples=P, batch=B, steps=N)
    client = optax.sgd(lr)
    task = make_task()
    return build(task, widths=WIDTHS, client=client, distillation=how, **options)


def first_memories(algorithm, state):
    first = algorithm.init_client(state)
    return jax.tree.map(lambda x: jnp.stack([x] * CLIENTS), first)


def run(algorithm, state):
    """Three rounds: the state, the memories of all clients, and ``distill_loss``."""
    table = ()
    if algorithm.init_client is not None:
        table = first_memories(algorithm, state)

    def one(carry, at):
        state, table = carry
        own = jax.tree.map(lambda x: x[at], table)
        args = () if table == () else (fad.AtClients(own),)
        state, metrics, *own = algorithm.step(state, cohort_of(at), None, *args)
        if own:
            new = own[0].unsafe_gather()
            table = jax.tree.map(lambda x, y: x.at[at].set(y), table, new)
        return (state, table), metrics["distill_loss"]

    carry, losses = jax.lax.scan(one, (state, table), jnp.asarray(COHORTS))
    return *carry, losses


# ------------------------------------------------------------------------------------
# The same in NumPy. A complex client step gives the derivative: f(lr + ih) = f + ih f'.
# ------------------------------------------------------------------------------------


def start(width):
    return jax.tree.map(np.asarray, init_at(width)(jax.random.key(0)))


def public(t):
    order = np.random.default_rng(0).permutation(V)
    return rows_of(V, 2)["x"][order][(t * P + np.arange(P)) % V]


def add(p, q, scale=1.0):
    return jax.tree.map(lambda a, b: a + scale * b, p, q)


def hidden_and_logits(p, x):
    hidden = np.tanh(x @ p["in"]["kernel"] + p["in"]["bias"])
    return hidden, hidden @ p["out"]["kernel"] + p["out"]["bias"]


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def entropy(p):
    return -(p * np.log(p)).sum(1)


def value_and_slope(p, x, target, temperature=1.0):
    """Of the mean cross-entropy of ``target`` and a model's probabilities."""
    hidden, z = hidden_and_logits(p, x)
    own = softmax(z / temperature)
    value = -(target * np.log(own)).sum(1).mean()
    dz = (own * target.sum(1, keepdims=True) - target) / temperature / len(x)
    dh = dz @ p["out"]["kernel"].T * (1 - hidden**2)
    first = {"kernel": x.T @ dh, "bias": dh.sum(0)}
    return value, {"in": first, "out": {"kernel": hidden.T @ dz, "bias": dz.sum(0)}}


def local(p, i, lr):
    clients = jax.tree.map(np.asarray, make_clients())
    for k, on in enumerate(clients.mask[i]):
        if on.any():
            x, y = (clients.examples[name][i, k][on] for name in "xy")
            p = add(p, value_and_slope(p, x, np.eye(C)[y])[1], -lr)
    return p, int(clients.mask[i].sum())


def distil(p, x, target, added=0.0, *, adam=True, temperature=1.0):
    """Steps on the cross-entropy of given ``[P, C]``; ``added [P]`` counts as loss."""
    m = v = jax.tree.map(np.zeros_like, p)
    total, added = 0, added + np.zeros(P)
    for k in range(N):
        index = (k * B + np.arange(B)) % P
        value, slope = value_and_slope(p, x[index], target[index], temperature)
        total = total + value + added[index].mean()
        if adam:
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, slope)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, v, slope)
            b, c = 1 - 0.9 ** (k + 1), 1 - 0.999 ** (k + 1)
            slope = jax.tree.map(
                lambda m, v, b=b, c=c: m / b / (np.sqrt(v / c) + 1e-8), m, v
            )
        p = add(p, slope, -0.05 if adam else -0.2)
    return p, total / N


def trained(models, ids, lr):
    """The tiers' mean models, and the models of all clients with examples."""
    means, all_of = [], []
    for tier, model in enumerate(models):
        own = [local(model, i, lr) for i in ids[2 * tier : 2 * tier + 2]]
        own = [(p, n) for p, n in own if n]
        mean = jax.tree.map(np.zeros_like, model)
        for p, n in own:
            mean = add(mean, p, n / sum(n for _, n in own))
        means.append(mean)
        all_of += [p for p, _ in own]
    return means, all_of


def plain_feddf(lr):
    models, losses = [start(w) for w in WIDTHS], []
    for t, ids in enumerate(COHORTS):
        x, t = public(t), TEMPERATURE
        models, clients = trained(models, ids, lr)
        z = sum(hidden_and_logits(p, x)[1] for p in clients) / len(clients)
        soft = softmax(z / t)
        pairs = [distil(p, x, soft, -entropy(soft), temperature=t) for p in models]
        models = [p for p, _ in pairs]
        losses.append(sum(value for _, value in pairs) / len(pairs))
    return models, losses


def plain_dsfl(lr):
    table = [[start(w)] * CLIENTS for w in WIDTHS]
    server, losses, last = start(1.0), [], None
    for t, ids in enumerate(COHORTS):
        said = []
        for place, i in enumerate(ids):
            own = table[place // 2][i]
            if last is not None:
                own, _ = distil(own, *last, adam=False)
            own, n = local(own, i, lr)
            if n:
                table[place // 2][i] = own
                said.append(softmax(hidden_and_logits(own, public(t))[1]))
        last = public(t), softmax(sum(said) / len(said) / TEMPERATURE)
        server, value = distil(server, *last, adam=False)
        losses.append(value)
    kept = [jax.tree.map(lambda *x: np.stack(x), *models) for models in table]
    return [server, *kept], losses


def plain_fedet(lr):
    server, models, losses = start(1.0), [start(w) for w in WIDTHS], []
    for t, ids in enumerate(COHORTS):
        models, clients = trained(models, ids, lr)
        x = public(t)
        z = np.stack([hidden_and_logits(p, x)[1] for p in clients])  # [k, P, C]
        sure = ((z - z.mean(2, keepdims=True)) ** 2).mean(2, keepdims=True)
        label = np.real(np.sum(sure * z, 0)).argmax(1)
        apart = (np.real(z).argmax(2) != label)[..., None] * sure
        total = np.sum(apart, 0)
        other = softmax((apart * z).sum(0) / np.where(np.real(total) > 0, total, 1))
        lam = DIVERSITY * (np.real(total) > 0)
        server = {"in": models[0]["in"], "out": server["out"]}
        target = np.eye(C)[label] + lam * other
        server, value = distil(server, x, target, -lam[:, 0] * entropy(other))
        models[0] = {"in": server["in"], "out": models[0]["out"]}
        losses.append(value)
    return [server, *models], losses


def models_of(module, state, table):
    if module is feddf:
        return [state.params, *state.narrow]
    return [state.params, *(table if module is dsfl else state.small)]


def judged(models, xp=jnp):
    """One smooth number of all that the rounds made."""
    return sum(xp.sum(xp.sin(x)) for x in jax.tree.leaves(models))


PLAIN = {feddf: plain_feddf, dsfl: plain_dsfl, fedet: plain_fedet}


@pytest.mark.once
@pytest.mark.parametrize("module", PLAIN, ids=lambda m: m.__name__)
def test_rounds_and_their_derivative_are_those_of_numpy(x64, module):
    def by_fad(lr):
        algorithm = make(module, lr)
        state, table, losses = run(algorithm, algorithm.init(jax.random.key(0)))
        models = models_of(module, state, table)
        return judged(models), (models, list(losses))

    derivative = jax.jacrev if module is fedet else jax.jacfwd  # which is cheaper
    slope, found = jax.jit(derivative(by_fad, has_aux=True))(LR)
    models, losses = want = PLAIN[module](LR + 1e-30j)
    assert len(losses) == len(COHORTS)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b.real, rtol=0, atol=1e-10)
    expected = judged(models, np).imag / 1e-30
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(slope, expected, rtol=1e-8)


@pytest.mark.once
@pytest.mark.parametrize("module", PLAIN, ids=lambda m: m.__name__)
def test_nobody_with_examples_and_nan(x64, module):
    algorithm, key = make(module), jax.random.key(0)
    step, clients = jax.jit(algorithm.step), make_clients()
    state, own = algorithm.init(key), ()
    if module is dsfl:
        table = first_memories(algorithm, state)
        own = (fad.AtClients(jax.tree.map(lambda x: x[:4], table)),)
    nobody = clients._replace(mask=jnp.zeros_like(clients.mask))
    after, metrics, *kept = step(state, cohort_of(range(4), nobody), key, *own)
    assert_same(after, state._replace(rounds=state.rounds + 1))
    assert_same(kept, list(own))
    assert metrics["distill_loss"] == 0 == metrics["train_loss"]

    def with_nan(i):
        x = clients.examples["x"].at[i].set(jnp.nan)
        return clients._replace(examples=clients.examples | {"x": x})

    # Of a client whose rows are all padding, NaN is nobody's; of others, it is seen.
    for i, finite in ((3, True), (2, False)):
        after, metrics, *_ = step(state, cohort_of(range(4), with_nan(i)), key, *own)
        leaves = jax.tree.leaves((after, metrics["train_loss"]))
        assert [bool(jnp.isfinite(x).all()) for x in leaves[-1:]] == [finite]
        assert all(bool(jnp.isfinite(x).all()) for x in leaves) is finite


SAID = 4 * P * C  # bytes of what one client says of a round's examples
SIZES = [4 * (D * h + h + h * C + C) for h in (4, 2)]
MODEL = sum(SIZES) // 2
COSTS = {  # rounds, down, up; besides a loss, and each weight twice
    feddf: (1, MODEL, MODEL + SAID + 4 * 5),
    dsfl: (1, SAID + 1, SAID + 4 * 3),
    fedet: (2, MODEL + 4 * P, MODEL + 2 * (SAID + 4 * P) + 4 * 3),
}


@pytest.mark.parametrize("module", PLAIN, ids=lambda m: m.__name__)
def test_costs_and_reveals(module):
    """Clients send sums alone, and the public examples are sent to nobody."""
    algorithm, key = make(module), jax.random.key(0)
    state, clients = algorithm.init(key), make_clients()
    args = (state, cohort_of(range(4), clients), key)
    if module is dsfl:
        own = jax.tree.map(lambda x: x[:4], first_memories(algorithm, state))
        args = (*args, fad.AtClients(own))
    cost = fad.plan(algorithm.step)(*args).cost()
    assert (cost.rounds, cost.bytes_down, cost.bytes_up) == COSTS[module]
    assert bool(cost.same_cohort) == (module is fedet)
    report = fad.check(algorithm.step)(*args)
    assert not report.allowed
    # What stays at the clients is their memory.
    kept = {o.path.startswith("output[2]") for o in report.outputs if o.axes}
    assert kept <= {True}

    state, *rest = half(args)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam
        after, *_ = jax.eval_shape(algorithm.step, state, *rest)
    before = jax.tree.map(lambda x: x.dtype, state)
    assert jax.tree.map(lambda x: x.dtype, after) == before


@pytest.mark.parametrize("module", PLAIN, ids=lambda m: m.__name__)
def test_public_examples_are_needed(module):
    with pytest.raises(fad.ConfigError, match=r"data\.validation_fraction: expected"):
        module.build(module.Config(widths=WIDTHS), make_task(validation=False))


def test_public_examples_go_round_and_have_no_labels():
    public = public_of(make_task(), Distillation(optax.sgd(1.0), examples=P))
    assert (public.size, public.classes) == (P, C)
    rows = [public.rows(jnp.int32(t)) for t in range(3)]
    assert list(rows[0]) == ["x"]
    seen = np.concatenate([r["x"] for r in rows])
    np.testing.assert_array_equal(seen[:V], seen[V:])
    assert len(np.unique(seen, axis=0)) == V
    every = public_of(make_task(), Distillation(optax.sgd(1.0)))
    assert every.size == V


def test_labels_are_classes():
    task = make_task()
    real = dataclasses.replace(
        task,
        train=fad.data.Federated(
            {"x": np.ones((2, D)), "y": np.ones(2)}, np.array([0, 2])
        ),
        test={"x": np.ones((2, D)), "y": np.ones(2)},
        validation={"x": np.ones((2, D)), "y": np.ones(2)},
    )
    with pytest.raises(fad.ConfigError, match=r"a class for each example; got y of fl"):
        feddf.build(feddf.Config(), real)


def test_a_model_without_one_last_layer():
    def with_two(key):
        return init_at(1.0)(key) | {"more": {"bias": jnp.zeros(C)}}

    def own(params, examples):
        return loss(params, examples) + params["more"]["bias"].sum()

    task = dataclasses.replace(make_task(), init=with_two, loss=own)
    with pytest.raises(fad.ConfigError, match=r"Leave the width 1\.0 out of widths"):
        fedet.build(fedet.Config(widths=(1.0, 0.5)), task)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (feddf, {"widths": (1.0, 0.5, 0.5)}, r"widths: expected some in \(0, 1\], eac"),
        (feddf, {"widths": ()}, r"widths: expected some in \(0, 1\]"),
        (dsfl, {"widths": (1.5,)}, r"widths: expected some in \(0, 1\]"),
        (feddf, {"widths": (0.5, 1.0)}, r"widths: expected 1\.0 first"),
        (feddf, {"temperature": 0.0}, r"temperature: expected in \(0, inf\)"),
        (dsfl, {"temperature": 0.0}, r"temperature: expected in \(0, inf\)"),
        (fedet, {"diversity": -1.0}, r"diversity: expected in \[0, inf\)"),
        (fedet, {"public_examples": 0}, r"public_examples: expected in \[1, inf\)"),
        (fedet, {"public_batch": 0}, r"public_batch: expected in \[1, inf\)"),
        (fedet, {"distill_steps": 0}, r"distill_steps: expected in \[1, inf\)"),
        (dsfl, {"distill_lr": 0.0}, r"distill_lr: expected in \(0, inf\)"),
        (dsfl, {"client_lr": 0.0}, r"client_lr: expected in \(0, inf\)"),
        (dsfl, {"client_momentum": 1.0}, r"client_momentum: expected in \[0, 1\)"),
    ],
)
def test_ranges(module, options, message):
    with pytest.raises(ValueError, match=message):
        module.Config(**options)
