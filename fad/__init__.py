"""Federated computations in JAX, differentiable through the communication."""

from fad import data as data
from fad import local as local
from fad._algorithm import Algorithm as Algorithm
from fad._errors import ClientValueError as ClientValueError
from fad._errors import ConfigError as ConfigError
from fad._errors import DataError as DataError
from fad._errors import FadError as FadError
from fad._errors import PlacementError as PlacementError
from fad._errors import PlanError as PlanError
from fad._errors import RunError as RunError
from fad._version import __version__ as __version__
from fad.modes import grad as grad
from fad.modes import jacobian as jacobian
from fad.modes import jvp as jvp
from fad.modes import value_and_grad as value_and_grad
from fad.modes import vjp as vjp
from fad.placement import AtClients as AtClients
from fad.placement import program as program
from fad.plan import plan as plan
from fad.primitives import broadcast as broadcast
from fad.primitives import map as map
from fad.primitives import mean as mean
from fad.primitives import sum as sum
from fad.primitives import weighted_mean as weighted_mean
