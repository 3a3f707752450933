"""Data: sources, partitioners, ragged clients, cohorts, tasks."""

from fad.data._digits import load_digits as load_digits
from fad.data._federated import Federated as Federated
from fad.data._partition import partition_dirichlet as partition_dirichlet
from fad.data._partition import partition_iid as partition_iid
from fad.data._partition import partition_shards as partition_shards
from fad.data._task import Task as Task
