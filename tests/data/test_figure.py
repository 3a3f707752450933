"""The partition as a picture."""

import sys

import numpy as np
import pytest

from fad.data import partition_dirichlet
from fad.data._figure import figure

pytestmark = pytest.mark.once


def clients(n, *, per_client=20, classes=10):
    """Sizes and labels of clients, one of them empty."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 2 * per_client, n)
    sizes[n // 2] = 0
    return {"y": rng.integers(0, classes, sizes.sum())}, np.cumsum([0, *sizes])


def test_areas_of_circles_are_in_proportion_to_counts():
    examples = {"y": np.array([3, 3, 3, 3, 8, 8, 3])}
    drawn = figure(examples, np.array([0, 6, 6, 7]))
    above, below = drawn.axes
    (circles,) = below.collections
    np.testing.assert_array_equal(circles.get_offsets(), [[0, 0], [0, 1], [2, 0]])
    areas = circles.get_sizes()
    np.testing.assert_allclose(areas / areas.max(), [1, 0.5, 0.25])
    assert [text.get_text() for text in below.get_yticklabels()] == ["3", "8"]
    assert [bar.get_height() for bar in above.patches] == [6, 0, 1]
    assert "the largest circle is 4 examples" in below.get_xlabel()


def test_the_largest_circle_fits_its_row():
    examples, offsets = clients(10)
    drawn = figure(examples, offsets)
    below = drawn.axes[1]
    diameter = np.sqrt(below.collections[0].get_sizes().max()) / 72 * drawn.dpi
    assert diameter < below.get_window_extent().height / 10


def texts_overlap(drawn):
    drawn.draw_without_rendering()
    texts = [*drawn.texts]
    for axis in (axis for axes in drawn.axes for axis in (axes.xaxis, axes.yaxis)):
        # A tick out of sight has a label too, which is not drawn.
        low, high = sorted(axis.get_view_interval())
        # Labels of the other side follow those of this one.
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
        texts += [axis.label, *(text for at, text in ticks if low <= at <= high)]
    shown = [text for text in texts if text.get_text() and text.get_visible()]
    boxes = [text.get_window_extent() for text in shown]
    outside = [b for b in boxes if b.x0 < 0 or b.y0 < 0 or b.y1 > drawn.bbox.y1]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    return outside + pairs


@pytest.mark.parametrize("n", [2, 10, 100, 1000])
@pytest.mark.parametrize("classes", [1, 10, 100])
def test_no_text_overlaps(n, classes):
    examples, offsets = clients(n, classes=classes)
    assert not texts_overlap(figure(examples, offsets))


def test_names_are_written_and_clipped():
    examples, offsets = clients(12)
    names = [f"the hospital number {i}" for i in range(12)]
    drawn = figure(examples, offsets, names=names, title="Hospitals")
    labels = [text.get_text() for text in drawn.axes[1].get_xticklabels()]
    assert labels == ["the hospital nu…"] * 12
    assert drawn.get_suptitle() == "Hospitals"
    assert not texts_overlap(drawn)


def test_short_names_lie_flat():
    examples, offsets = clients(3)
    (first, *_) = figure(examples, offsets, names="abc").axes[1].get_xticklabels()
    assert (first.get_text(), first.get_rotation()) == ("a", 0)


def test_many_clients_are_a_sorted_heat_map():
    labels = np.arange(6000) % 5
    parts = partition_dirichlet(labels, 200, alpha=0.1, seed=0)
    y = labels[np.concatenate(parts)]
    offsets = np.cumsum([0, *map(len, parts)])
    drawn = figure({"y": y}, offsets)
    assert drawn.get_suptitle() == "200 clients, 6,000 examples"
    (mesh,) = drawn.axes[1].collections
    shares = np.asarray(mesh.get_array()).reshape(5, 200)
    held = shares.sum(axis=0) > 0
    np.testing.assert_allclose(shares.sum(axis=0)[held], 1)
    assert held.sum() == sum(len(part) > 0 for part in parts)
    main = shares.argmax(axis=0)[held]
    assert (np.diff(main) >= 0).all()
    assert not held[held.sum() :].any()  # empty clients come last


def test_more_clients_than_stripes_are_averaged():
    examples, offsets = clients(2500)
    (mesh,) = figure(examples, offsets).axes[1].collections
    shares = np.asarray(mesh.get_array()).reshape(10, 1000)
    np.testing.assert_allclose(shares.sum(axis=0)[:-1], 1)


def test_max_clients_decides():
    examples, offsets = clients(10)
    assert len(figure(examples, offsets, max_clients=10).axes) == 2
    assert len(figure(examples, offsets, max_clients=9).axes) == 3  # with a scale


def test_without_classes_the_sizes_are_drawn():
    sizes = np.array([0, 1, 1, 7, 1000])
    (axes,) = figure({"x": np.zeros(1009)}, np.cumsum([0, *sizes])).axes
    assert sum(bar.get_height() for bar in axes.patches) == 5
    assert axes.get_xlabel() == "examples at a client"


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_writes_the_file(tmp_path, ending):
    examples, offsets = clients(5)
    path = tmp_path / f"clients.{ending}"
    figure(examples, offsets, path=path)
    assert path.stat().st_size > 1000


def test_refuses_label_and_max_clients():
    examples, offsets = clients(5)
    match = r"figure\(label='z'\): expected the name .* got no such name. There are 'y'"
    with pytest.raises(ValueError, match=match):
        figure(examples, offsets, label="z")
    with pytest.raises(ValueError, match=r"figure\(max_clients=\.\.\.\): expected a p"):
        figure(examples, offsets, max_clients=0)


def test_says_what_is_missing_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    match = r'drawing needs the package .* installed: pip install "fad\[experiments\]"'
    with pytest.raises(ValueError, match=match):
        figure(*clients(5))
