"""Where a value lives: ``AtClients``, programs, and the ambient number of clients.

A value is at the *server* (an ordinary JAX array) or at the *clients* (``AtClients``: a
pytree whose leaves carry a leading client axis).
"""

from fad.placement._ambient import CLIENTS as CLIENTS
from fad.placement._ambient import ambient_clients as ambient_clients
from fad.placement._ambient import ambient_remat as ambient_remat
from fad.placement._ambient import clients_in_scope as clients_in_scope
from fad.placement._ambient import remat_in_scope as remat_in_scope
from fad.placement._at_clients import AtClients as AtClients
from fad.placement._at_clients import count_clients as count_clients
from fad.placement._at_clients import is_at_clients as is_at_clients
from fad.placement._gathered import GATHERED as GATHERED
from fad.placement._gathered import gathered as gathered
from fad.placement._program import program as program
