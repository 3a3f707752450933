"""How many clients run at a time: a cost model, and candidates to measure.

One client's work takes ``e t / c + f / r(c)`` seconds in chunks of ``c``: ``e``
equations of overhead ``t`` each, shared by the chunk, and ``f`` operations at a rate
``r``. On a CPU, batches of small matrices run at half the rate of single ones (measured
for local training), so one client at a time is best unless its work is tiny; where the
sums are pulled through the work, a chunk makes one larger product instead. On a GPU or
TPU one client cannot fill the machine, and chunks are as large as memory allows.
"""

from dataclasses import dataclass
from typing import Literal

import jax

from fad.compile._estimate import Estimate

# Per backend: seconds of overhead per equation, operations per second of one client's
# work, the slowdown of a batch, and bytes that a chunk's intermediate values may take.
_CPU = (1.5e-6, 2e10, 2.0, 32 << 20)
_ACCELERATOR = (1e-5, 2e11, 0.02, 2 << 30)

Rule = Literal["model", "one", "many"]


@dataclass(frozen=True)
class Policy:
    """How to choose the chunk of a sweep.

    Attributes:
        rule: ``model`` (what the cost model says), ``one`` client at a time, ``many``
            (as many as memory allows), used if ``size`` is None.
        size: Clients at a time; 0 stands for all.
    """

    rule: Rule = "model"
    size: int | None = None

    @property
    def estimates(self) -> bool:
        """Whether the rule looks at the work."""
        return self.size is None and self.rule != "one"

    def pick(self, n: int, cost: Estimate | None) -> int:
        """Return the chunk for ``n`` clients."""
        if self.size is not None:
            return min(self.size, n) or n
        if self.rule == "one" or cost is None:
            return 1
        return _many(n, cost) if self.rule == "many" else _model(n, cost)


def _constants() -> tuple[float, float, float, int]:
    return _CPU if jax.default_backend() == "cpu" else _ACCELERATOR


def _many(n: int, cost: Estimate) -> int:
    *_, budget = _constants()
    fit = max(budget // max(cost.nbytes, 1), 1)
    return even(n, min(fit, n, 1024))


def _model(n: int, cost: Estimate) -> int:
    overhead, rate, batch, _ = _constants()
    many = _many(n, cost)
    slowdown = min(batch, 0.8) if cost.shared else batch
    one = cost.equations * overhead + cost.flops / rate
    chunked = cost.equations * overhead / many + slowdown * cost.flops / rate
    return many if chunked < one else 1


def even(n: int, most: int) -> int:
    """Return a chunk of at most ``most`` that leaves no small rest, if there is one."""
    for size in range(most, most // 2, -1):
        if n % size == 0:
            return size
    return most
