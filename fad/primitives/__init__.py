"""The primitives that join server and clients, and the means on top of them."""

from fad.primitives._broadcast_sum import broadcast as broadcast
from fad.primitives._broadcast_sum import broadcast_p as broadcast_p
from fad.primitives._broadcast_sum import sum as sum
from fad.primitives._broadcast_sum import sum_p as sum_p
from fad.primitives._coverage import Coverage as Coverage
from fad.primitives._coverage import coverage_mean as coverage_mean
from fad.primitives._map import map as map
from fad.primitives._map import map_p as map_p
from fad.primitives._mean import mean as mean
from fad.primitives._mean import weigh as weigh
from fad.primitives._mean import weighted_mean as weighted_mean
from fad.primitives._rows import put as put
from fad.primitives._rows import take as take
from fad.primitives._select import deselect_p as deselect_p
from fad.primitives._select import select_p as select_p
from fad.primitives._slices import deselect as deselect
from fad.primitives._slices import select as select
