"""What a client runs: pure functions over (params, batches)."""

from fad.local._batches import Batches as Batches
from fad.local._keys import client_key as client_key
from fad.local._personalize import Personalized as Personalized
from fad.local._personalize import Spread as Spread
from fad.local._personalize import personalize as personalize
from fad.local._personalize import spread as spread
from fad.local._personalize import support_query as support_query
from fad.local._personalize import take_steps as take_steps
from fad.local._train import LocalResult as LocalResult
from fad.local._train import evaluate as evaluate
from fad.local._train import train as train
