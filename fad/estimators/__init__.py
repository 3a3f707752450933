"""Gradients of unrolled federated rounds, window by window."""

from fad.estimators._es import es as es
from fad.estimators._estimator import Estimate as Estimate
from fad.estimators._estimator import Estimator as Estimator
from fad.estimators._forward import forward as forward
from fad.estimators._pes import pes as pes
from fad.estimators._reverse import reverse as reverse
from fad.estimators._safe_update import InnerRunDiverged as InnerRunDiverged
from fad.estimators._safe_update import SafeUpdate as SafeUpdate
from fad.estimators._safe_update import safe_update as safe_update
