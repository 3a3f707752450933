"""What a program communicates: rounds, bytes, client work and client state."""

from fad.plan._check import check as check
from fad.plan._plan import Cost as Cost
from fad.plan._plan import Plan as Plan
from fad.plan._plan import plan as plan
from fad.plan._report import Aggregate as Aggregate
from fad.plan._report import Allowed as Allowed
from fad.plan._report import CheckReport as CheckReport
from fad.plan._report import Output as Output
from fad.plan._report import Received as Received
from fad.plan._values import Round as Round
from fad.plan._values import Wire as Wire
from fad.plan._values import Work as Work
