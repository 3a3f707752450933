"""Several processes, on one host or on many, as one mesh of devices."""

from fad.distributed._agreement import check_agreement as check_agreement
from fad.distributed._clients import ShardedClients as ShardedClients
from fad.distributed._clients import clients as clients
from fad.distributed._guard import guard as guard
from fad.distributed._initialize import initialize as initialize
from fad.distributed._mesh import local_range as local_range
from fad.distributed._mesh import mesh as mesh
