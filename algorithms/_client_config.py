"""The options of clients' SGD: momentum, weight decay, clipping, a rate that falls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optax

import fad
from algorithms._falling import falling
from algorithms._optimizers import clipped, scaled
from algorithms._ranges import check_range


@dataclass(frozen=True)
class ClientConfig:
    """The options of clients' SGD.

    With g the gradient of a batch, v = 0 at first, a local step is

        g <- g min(1, clip / |g|),  |g| over all leaves        unless client_clip is 0
        v <- momentum v + g + weight_decay z
        z <- z - lr v

    and lr is multiplied by ``client_lr_fall`` after each number of rounds of
    ``client_lr_falls``: with 800, round 801 is the first with the lower rate.
    """

    client_lr: float = 0.1
    client_momentum: float = 0.0
    client_weight_decay: float = 0.0
    client_clip: float = 0.0
    client_lr_falls: tuple[int, ...] = ()
    client_lr_fall: float = 0.25

    def __post_init__(self):
        """Check the ranges."""
        check_range(self, "(0, inf)", "client_lr")
        check_range(self, "[0, 1)", "client_momentum")
        check_range(self, "[0, inf)", "client_weight_decay", "client_clip")
        check_range(self, "(0, 1]", "client_lr_fall")
        falls = self.client_lr_falls
        if any(b <= a for a, b in zip((0, *falls), falls, strict=False)):
            raise ValueError(
                f"client_lr_falls: expected rising numbers of rounds from 1 on, got "
                f"{falls!r}"
            )

    def options(self) -> dict[str, Any]:
        """Return the arguments of an algorithm's builder but for the optimizer."""
        return {k: v for k, v in vars(self).items() if not k.startswith("client_")}

    def client(self, scale: Any = None) -> optax.GradientTransformation:
        """Return the clients' optimizer, its rate times a scale that may be traced."""
        steps: list[optax.GradientTransformation] = []
        if self.client_clip:
            steps.append(clipped(self.client_clip))
        if self.client_weight_decay:
            steps.append(optax.add_decayed_weights(self.client_weight_decay))
        steps.append(optax.sgd(self.client_lr, momentum=self.client_momentum or None))
        if scale is not None:
            steps.append(scaled(scale))
        return optax.chain(*steps)

    def algorithm(
        self, build: Callable[..., fad.Algorithm], task: fad.data.Task, **more: Any
    ) -> fad.Algorithm:
        """Build an algorithm by ``build(task, client=, ...)``, whose rate may fall.

        ``more`` are arguments besides ``options``, or in place of some.
        """
        options = {**self.options(), **more}

        def make(scale=None):
            return build(task, client=self.client(scale), **options)

        return falling(make, self.client_lr_falls, self.client_lr_fall)
