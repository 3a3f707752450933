"""The clients' examples, the cohorts sampled from them, their parts and pictures."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

from fad.data._client_splits import split
from fad.data._cohort import recipe
from fad.data._cohorts import Cohorts, Place
from fad.data._describe import describe
from fad.data._figure import figure
from fad.data._ragged import Ragged
from fad.local._batches import Batches
from fad.placement import AtClients


class Federated(Ragged):
    """Examples of many clients of any sizes: ``[N, *]`` arrays sorted by client.

    Client ``i`` holds the rows from ``offsets[i]`` up to ``offsets[i + 1]``. The arrays
    are not copied, and nothing is padded.

    Args:
        examples: Named arrays ``[N, *]`` that share N.
        offsets: Where each client starts, ``[num_clients + 1]`` integers, rising
            (equal neighbours make an empty client) from 0 to N.
        names: The clients' names; None where they have none.

    Raises:
        DataError: If there are no examples, lengths differ, an array is masked,
            offsets do not fit, or names are not one text per client.

    Example:
        >>> data = Federated({"x": np.arange(5)}, np.array([0, 2, 5]))
        >>> data.num_clients, data.sizes.tolist(), data.client(1)["x"].tolist()
        (2, [2, 3], [2, 3, 4])
    """

    def cohort(
        self,
        key: jax.Array,
        size: int,
        *,
        batch_size: int,
        epochs: int = 1,
        replace: bool = False,
        sampling: str | np.ndarray = "uniform",
        available: np.ndarray | None = None,
        max_examples: int | None = None,
        bucket_growth: float | None = 2.0,
        tiers: int = 1,
        tiers_by: Literal["client", "round"] = "client",
    ) -> AtClients[Batches]:
        """Sample clients and lay out their shuffled batches.

        ``examples: [size, steps, batch_size, *]``. Short clients are filled up with
        zero rows whose ``mask`` is False. The order of a client's examples depends on
        the key and the client alone, not on who else takes part.

        An epoch has as many steps as the smallest bucket that holds the cohort's
        largest client: the steps of the federation's largest, and from there down by
        ``bucket_growth``. Thus a function of cohorts compiles at most once per bucket,
        ``ceil(log2(largest)) + 1`` times for 2.0. A small growth wastes less memory
        and work on padding; None compiles once and gives cohorts that stack. Results do
        not depend on the bucket.

        Sampled by size with replacement, the plain mean over the cohort is an unbiased
        estimate of the mean over all clients weighted by examples (Li et al., scheme
        I); other combinations need weights of the user's own.

        Args:
            key: A JAX random key, typed or raw; the same key gives the same cohort.
            size: The number of places. Clients come in rising order, but for tiers.
            batch_size: The number of examples in a batch.
            epochs: How often each client goes through its examples, each time in a
                new order.
            replace: Whether a client may take several places, with the same batches.
            sampling: "uniform"; "size", in proportion to the number of examples; or
                weights ``[num_clients]``. Without replacement the clients are drawn
                one after the other, each in proportion among those that remain.
            available: Which clients can be reached, bools or probabilities
                ``[num_clients]``, drawn anew from each key; None for all. Where they
                are fewer than size, the last places stay empty: ``client`` is -1 and
                the mask False. A weighted mean leaves them out, ``fad.mean`` does not.
            max_examples: At most so many examples per client and epoch, a new random
                choice each; None for all.
            bucket_growth: The ratio of neighbouring buckets, above 1; None for one.
            tiers: Equal runs of places, which divide size (``fad.submodels.tiers``).
            tiers_by: "client": client c always stands in tier ``c % tiers``, which is
                drawn of its own clients alone, in rising order; or "round": drawn as
                without tiers, all places are shuffled.

        Returns:
            The cohort, ``AtClients(Batches(examples, mask, client))``.

        Raises:
            DataError: If the key is not one concrete key, a number is not a positive
                integer, replace is not a bool, there are too few clients (also of a
                tier), a weight or probability is none, the examples are no numbers, or
                tiers do not divide size.

        Example:
            >>> data = Federated({"x": np.arange(5)}, np.array([0, 2, 5]))
            >>> cohort = data.cohort(jax.random.key(0), 2, batch_size=2)
            >>> cohort.unsafe_gather().mask.astype(int).tolist()
            [[[1, 1], [0, 0]], [[1, 1], [1, 0]]]

        Source: X. Li et al., On the Convergence of FedAvg on Non-IID Data, 2020,
        section 3 (https://arxiv.org/abs/1907.02189).
        """
        made = recipe(
            self.examples,
            self.offsets,
            size,
            batch_size=batch_size,
            epochs=epochs,
            replace=replace,
            sampling=sampling,
            available=available,
            max_examples=max_examples,
            bucket_growth=bucket_growth,
            tiers=tiers,
            tiers_by=tiers_by,
        )
        return made.make(key)

    def cohorts(
        self,
        key: jax.Array,
        size: int,
        *,
        place: Place = jax.device_put,
        prefetch: int = 1,
        state: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Cohorts:
        """Return the cohorts of rounds 1, 2 and so on, made while a round runs.

        That of round ``t`` is ``cohort(jax.random.fold_in(key, t), size, **options)``.

        Args:
            key: A JAX random key, typed or raw.
            size: The number of places in each cohort.
            place: Puts a cohort where it is used, in the thread that makes it. Where
                it is a method of what keeps the cohorts, only ``close`` ends the
                thread.
            prefetch: How many cohorts are made ahead of their use; 0 for none, without
                a thread.
            state: The ``state`` of earlier cohorts, to go on after their last round.
            options: The options of ``cohort``.

        Returns:
            An endless iterator; ``close`` it, or use it in a ``with`` block.

        Raises:
            DataError: What ``cohort`` raises; if prefetch is negative; or if the state
                is of another key, of other clients or of other options.

        Example:
            >>> data = Federated({"x": np.arange(5)}, np.array([0, 2, 5]))
            >>> with data.cohorts(jax.random.key(0), 1, batch_size=2) as cohorts:
            ...     sizes = [int(next(cohorts).unsafe_gather().mask.sum())]
            ...     rounds = int(cohorts.state["round"])
            >>> rounds
            1
        """
        made = recipe(self.examples, self.offsets, size, **options)
        cohorts = Cohorts(made, key, place=place, prefetch=prefetch)
        if state is not None:
            cohorts.restore(state)
        return cohorts

    def split(
        self,
        *fractions: float,
        seed: int,
        by: str = "random",
        stratify: str | None = None,
    ) -> tuple["Federated", ...]:
        """Split every client, for train, validation and test.

        Every example goes to one part. A client's numbers are rounded by largest
        remainder, equal ones in favour of the earlier part, so that a client of one
        example gives it to the largest. The rows of a part keep their order.

        Args:
            fractions: The shares of the parts, which sum to 1.
            seed: The seed of the draw.
            by: "random"; or "order", which cuts each client in the order of its rows,
                so that the end of a text is the last part.
            stratify: An array of labels ``[N]`` of which, at every client, each part
                gets the share that it has of the client's examples; None for none. Of
                two parts each has the share of every label rounded up or down; of P
                parts the last has, and each of the others is fewer than P - 1
                examples away from it.

        Returns:
            One ``Federated`` per part, of the same clients, who may be empty in it.

        Raises:
            DataError: If the shares do not sum to 1, a part gets no example at all,
                seed is not an integer of at least 0, by is unknown, or there are no
                such labels.

        Example:
            >>> data = Federated({"x": np.arange(10)}, np.array([0, 4, 10]))
            >>> train, test = data.split(0.5, 0.5, seed=0, by="order")
            >>> train.client(1)["x"].tolist(), test.client(1)["x"].tolist()
            ([4, 5, 6], [7, 8, 9])
        """
        parts = split(
            self.examples, self.offsets, fractions, seed=seed, by=by, stratify=stratify
        )
        return tuple(Federated(*part, names=self.names) for part in parts)

    def describe(self, *, label: str = "y") -> str:
        """Return a short text on the clients: sizes, labels, missing values.

        The label entropy, in bits, is the mean over the clients that hold examples,
        beside that of all examples together: the further below, the more
        heterogeneous. The label distance is the mean over all pairs of these clients
        of the total variation between their shares of the labels.

        Args:
            label: The array of labels; the usual "y" may be absent.

        Returns:
            One line on sizes, two on labels, and one per column with NaN.

        Raises:
            DataError: If there are no labels of a name other than "y".

        Example:
            >>> y = np.array([0, 0, 1, 1])
            >>> print(Federated({"y": y}, np.array([0, 2, 4])).describe())
            2 clients, 4 examples; sizes min 2, median 2, mean 2, max 2
            label entropy 0.00 bits within clients, 1.00 overall
            label distance 1.00 between two clients (mean total variation, 0 to 1)
        """
        return describe(self.examples, self.offsets, label=label, names=self.names)

    def figure(
        self,
        *,
        path: str | os.PathLike[str] | None = None,
        label: str = "y",
        title: str | None = None,
        max_clients: int = 100,
    ) -> Any:
        """Draw which client holds how many examples of which class.

        Up to ``max_clients`` clients are drawn with a circle per class, more as a heat
        map of their shares of the classes, sorted by their most frequent class;
        without classes the sizes are drawn.

        Args:
            path: The file to write, in a format that its ending names; None writes
                none.
            label: The array of classes; the usual "y" may be absent.
            title: The title; the number of clients and examples without.
            max_clients: The most clients that are drawn with circles.

        Returns:
            The ``matplotlib.figure.Figure``.

        Raises:
            DataError: If matplotlib is not installed, there are no classes of a name
                other than "y", or max_clients is not a positive integer.

        Example:
            >>> y = np.array([0, 0, 1, 1])
            >>> drawn = Federated({"y": y}, np.array([0, 2, 4])).figure()
            >>> drawn.axes[1].get_ylabel()
            'class'
        """
        return figure(
            self.examples,
            self.offsets,
            path=path,
            label=label,
            names=self.names,
            title=title,
            max_clients=max_clients,
        )
