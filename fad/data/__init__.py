"""Data: sources, partitioners, ragged clients, cohorts, tasks."""

from fad.data._bilevel_task import BilevelTask as BilevelTask
from fad.data._cohorts import Cohorts as Cohorts
from fad.data._compositional import compositional as compositional
from fad.data._federated import Federated as Federated
from fad.data._group import group_by as group_by
from fad.data._levels import Levels as Levels
from fad.data._load import load as load
from fad.data._memories import ClientMemories as ClientMemories
from fad.data._minimax import minimax as minimax
from fad.data._partition import partition_dirichlet as partition_dirichlet
from fad.data._partition import partition_iid as partition_iid
from fad.data._partition import partition_shards as partition_shards
from fad.data._partition_by import partition_by as partition_by
from fad.data._partition_classes import partition_classes as partition_classes
from fad.data._partition_hierarchical import (
    partition_hierarchical as partition_hierarchical,
)
from fad.data._partition_sizes import partition_lognormal as partition_lognormal
from fad.data._partition_sizes import partition_power_law as partition_power_law
from fad.data._partition_sizes import partition_sizes as partition_sizes
from fad.data._quadratic_loss import Quadratic as Quadratic
from fad.data._quadratic_problem import quadratic_problem as quadratic_problem
from fad.data._quadratics import Quadratics as Quadratics
from fad.data._shift import add_noise as add_noise
from fad.data._shift import rotate as rotate
from fad.data._synthetic import synthetic as synthetic
from fad.data._synthetic import synthetic_iid as synthetic_iid
from fad.data._task import Task as Task
from fad.data._text import PRINTABLE as PRINTABLE
from fad.data._text import Vocabulary as Vocabulary
from fad.data._text import next_character as next_character
from fad.data._text import speeches as speeches
from fad.data._variants import flip_labels as flip_labels
from fad.data._variants import imbalance as imbalance
from fad.data._variants import long_tail_sizes as long_tail_sizes
