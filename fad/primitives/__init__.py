"""The three primitives that join server and clients, and the means on top of them."""

from fad.primitives._broadcast_sum import broadcast as broadcast
from fad.primitives._broadcast_sum import broadcast_p as broadcast_p
from fad.primitives._broadcast_sum import sum as sum
from fad.primitives._broadcast_sum import sum_p as sum_p
from fad.primitives._map import map as map
from fad.primitives._map import map_p as map_p
from fad.primitives._mean import mean as mean
from fad.primitives._mean import weigh as weigh
from fad.primitives._mean import weighted_mean as weighted_mean
