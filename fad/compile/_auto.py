"""``chunk="auto"``: the cost model's choice, confirmed by measuring."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad.compile._chunk import Policy
from fad.compile._explain import SweepReport
from fad.compile._memory import key_of, recall, remember

CANDIDATES = (Policy("model"), Policy("one"), Policy("many"))
ENOUGH = 0.3  # seconds spent on measuring a candidate, unless one run takes longer


class Choice(NamedTuple):
    """A policy, and why."""

    policy: Policy
    why: str


def choose(
    sweeps: Sequence[SweepReport],
    devices: int,
    run: Callable[[Policy], Any] | None,
    signature: Any,
) -> Choice:
    """Choose how clients are chunked.

    Args:
        sweeps: The program's sweeps, with the cost of one client's work.
        devices: Devices that share the clients.
        run: Runs the program under a policy; None where it cannot be run now.
        signature: The program's arguments, for the memory.
    """
    chunks: dict[tuple[int, ...], Policy] = {}
    for policy in CANDIDATES:
        picked = [policy.pick(-(-s.clients // devices), s.estimate) for s in sweeps]
        chunks.setdefault(tuple(picked), policy)
    if len(chunks) == 1:
        return Choice(Policy("model"), "all choices of chunk are the same")
    facts = [(s.clients, s.work, s.where, s.sums, s.estimate) for s in sweeps]
    key = key_of(signature, devices, facts)
    known = _known(recall(key))
    if known is not None:
        return known._replace(why=f"{known.why}, remembered")
    if run is None:
        return Choice(Policy("model"), "chosen by the cost model, not measured")
    return _measured(chunks, run, key)


def _known(entry: Any) -> Choice | None:
    """Return a remembered choice; an entry that is none of ours is no memory."""
    if not isinstance(entry, dict) or not isinstance(entry.get("why"), str):
        return None
    found = [p for p in CANDIDATES if p.rule == entry.get("rule")]
    return Choice(found[0], entry["why"]) if found else None


def _measured(
    chunks: dict[tuple[int, ...], Policy], run: Callable[[Policy], Any], key: str
) -> Choice:
    times = {policy: _time(run, policy) for policy in chunks.values()}
    best = min(times, key=times.__getitem__)
    listing = ", ".join(f"{p.rule} {1e3 * t:.3g} ms" for p, t in times.items())
    why = f"fastest of those measured ({listing})"
    remember(key, {"rule": best.rule, "why": why})
    return Choice(best, why)


def _time(run: Callable[[Policy], Any], policy: Policy) -> float:
    jax.block_until_ready(run(policy))  # compiles
    times: list[float] = []
    while not times or (sum(times) < ENOUGH and len(times) < 5):
        start = time.perf_counter()
        jax.block_until_ready(run(policy))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def spared(args: tuple, kwargs: dict, donated: Sequence[int]) -> tuple[tuple, dict]:
    """Return the arguments with copies of those that a measuring run may use up.

    JAX donates by name too, so with anything donated all keyword arguments are copied.
    """

    def copy(x: Any) -> Any:
        return jnp.array(x) if isinstance(x, jax.Array) else x

    given = [
        jax.tree.map(copy, x) if i in donated or i - len(args) in donated else x
        for i, x in enumerate(args)
    ]
    return tuple(given), jax.tree.map(copy, kwargs) if donated else kwargs
