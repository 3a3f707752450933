"""What a client runs: pure functions over (params, batches)."""

from fad.local._batches import Batches as Batches
from fad.local._keys import client_key as client_key
from fad.local._train import LocalResult as LocalResult
from fad.local._train import evaluate as evaluate
from fad.local._train import train as train
