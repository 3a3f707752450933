"""Sub-models: which units a model has, and which of them a client gets."""

from fad.submodels._costs import Costs as Costs
from fad.submodels._costs import costs as costs
from fad.submodels._coverage import merged as merged
from fad.submodels._extract import kept as kept
from fad.submodels._extract import random as random
from fad.submodels._extract import rolling as rolling
from fad.submodels._extract import static as static
from fad.submodels._extract import top as top
from fad.submodels._find import find as find
from fad.submodels._mask import masked as masked
from fad.submodels._tiers import tiers as tiers
from fad.submodels._units import Place as Place
from fad.submodels._units import Unit as Unit
from fad.submodels._units import Units as Units
