"""Federated minimisers of a mean of clients' losses, as pure functions."""

from fad.solvers._control_variates import ControlVariates as ControlVariates
from fad.solvers._corrected_round import corrected_round as corrected_round
from fad.solvers._fedavg import fedavg as fedavg
from fad.solvers._fedlin import fedlin as fedlin
from fad.solvers._gradient_descent import gradient_descent as gradient_descent
from fad.solvers._scaffold import scaffold as scaffold
from fad.solvers._solver import Solver as Solver
from fad.solvers._svrg import svrg as svrg
