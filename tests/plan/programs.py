"""Programs whose communication is known in closed form."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

import fad

CLIENTS, SIZE = 4, 40  # a model of SIZE floats
F32 = 4  # bytes


def train(
    theta: jax.Array,
    w: jax.Array,
    cohorts: Any,
    test: Any,
    *,
    place: Literal["server", "client"] = "server",
    remat: bool = False,
) -> jax.Array:
    """Return the mean loss after one round per cohort.

    ``theta`` scales blocks of the server's step, or shifts those of the clients' model.
    The only residual of a client's work is a cosine, SIZE floats.
    """

    def blocks():
        return jnp.repeat(theta, SIZE // theta.size)

    def body(w, cohort):
        def work(x):
            return jnp.sin(w + blocks() if place == "client" else w) * x

        new = fad.program(lambda c: fad.mean(fad.map(work, c, remat=remat)))(cohort)
        return w + (blocks() if place == "server" else 0.1) * new, None

    w, _ = jax.lax.scan(body, w, cohorts)
    return mean_loss(w, test)


@fad.program
def mean_loss(w: jax.Array, data: Any) -> jax.Array:
    """Return the mean over clients of a squared distance."""
    return fad.mean(fad.map(lambda x: jnp.sum((w - x) ** 2), data))


def clients(*lead: int, size: int = SIZE) -> Any:
    """Return the shape of a vector per client, stacked ``lead`` times."""
    return fad.AtClients(jax.ShapeDtypeStruct((*lead, CLIENTS, size), jnp.float32))


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """Return a shape at the server."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def train_args(rounds: int, parameters: int) -> tuple[Any, ...]:
    """Return the shapes of ``train``'s arguments, with a cohort for each round."""
    return floats(parameters), floats(SIZE), clients(rounds), clients()


def counts(plan: Any) -> tuple[int, int]:
    """Return how many values a plan sends down and up."""
    down, up = ([len(getattr(r, k)) for r in plan.rounds] for k in ("down", "up"))
    return sum(down), sum(up)


@fad.program
def one_round(w, data):
    """A round with a cosine as its only residual."""
    return w + fad.mean(fad.map(lambda x: jnp.sin(w) * x, data))


def same_data(w, data, rounds=3):
    return jax.lax.scan(lambda w, _: (one_round(w, data), None), w, length=rounds)[0]


def rounds_of(fn, *args, **options):
    return fad.plan(fn, **options)(*args).rounds


def wires(fn, *args):
    return [
        ([w.text for w in r.down], [w.text for w in r.up]) for r in rounds_of(fn, *args)
    ]
