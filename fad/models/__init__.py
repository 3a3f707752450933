"""The models of the ready-made tasks, in Flax; ``import fad`` does not import them.

Parameters are float32. A model computes in the dtype that its input and its parameters
promote to; for double precision give both as float64.
"""

from fad.models._aggregator import CoordinateMlp as CoordinateMlp
from fad.models._cnn import FedAvgCnn as FedAvgCnn
from fad.models._cnn import FedSepCnn as FedSepCnn
from fad.models._lstm import CharLstm as CharLstm
from fad.models._make import MODELS as MODELS
from fad.models._make import make as make
from fad.models._mask_network import MaskNetwork as MaskNetwork
from fad.models._mlp import FedNestMlp as FedNestMlp
from fad.models._mlp import Mlp as Mlp
from fad.models._narrow import narrow as narrow
from fad.models._resnet import ResNet18 as ResNet18
from fad.models._transformer import CharTransformer as CharTransformer
