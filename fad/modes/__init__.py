"""Who differentiates what, where, at which cost: forward, reverse, mixed, auto."""

from fad.modes._api import Derivative as Derivative
from fad.modes._api import grad as grad
from fad.modes._api import jacobian as jacobian
from fad.modes._api import value_and_grad as value_and_grad
from fad.modes._policies import save_aggregates as save_aggregates
from fad.modes._products import jvp as jvp
from fad.modes._products import vjp as vjp
from fad.modes.auto import Candidate as Candidate
from fad.modes.auto import Choice as Choice
