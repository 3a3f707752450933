import itertools

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fad import RunError
from fad.experiment import JsonlWriter, plot_run
from fad.experiment._figure import Curve, plot
from fad.experiment._labels import _spread

pytestmark = pytest.mark.once


def rows(slope, *, trace=None, last=10):
    made = []
    for t in range(1, last + 1):
        row = {"round": t, "accuracy": slope * t, "bytes_down": 1e5 * t, "bytes_up": 0}
        made.append(row | ({} if trace is None else {"lr": trace}))
    return made


@pytest.fixture
def figures(monkeypatch):
    """The figures that were written."""
    taken = []
    save = Figure.savefig

    def savefig(self, *args, **options):
        save(self, *args, **options)
        taken.append(self)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return taken


def extents(axes):
    """The boxes of the texts of a panel, without their leaders."""
    renderer = axes.figure.canvas.get_renderer()
    return {t.get_text(): Text.get_window_extent(t, renderer) for t in axes.texts}


@pytest.mark.parametrize("trace", [None, "lr"])
def test_labels_do_not_overlap(tmp_path, figures, trace):
    curves = [Curve(f"run {i}", rows(0.09, trace=1 + i)) for i in range(8)]
    curves += [Curve("grey", rows(0.05, trace=2), grey=True)]
    path = plot(curves, tmp_path / "f.png", title="t", trace=trace, target=0.85)
    assert path.read_bytes().startswith(b"\x89PNG")
    for panel, axes in enumerate(figures[0].axes):
        boxes = list(extents(axes).values())
        assert len(boxes) == (9 if panel == 0 else 8)
        boxes.sort(key=lambda box: box.y0)
        for low, high in itertools.pairwise(boxes):
            assert low.y1 <= high.y0 + 1
        assert max(box.x1 for box in boxes) <= figures[0].bbox.width
    assert "target 0.850" in extents(figures[0].axes[0])


@pytest.mark.parametrize("trace", [None, "lr"])
def test_run_that_ends_early_is_named_at_its_end(tmp_path, figures, trace):
    curves = [Curve(f"run {i}", rows(0.09, trace=1 + i)) for i in range(3)]
    early = [Curve(f"early {i}", rows(0.08, trace=2, last=5 + i)) for i in range(3)]
    grey = [Curve("", rows(0.05), grey=True)]
    plot(curves + early + grey, tmp_path / "f.png", title="t", trace=trace, target=0.5)
    for axes in figures[0].axes:
        boxes = extents(axes)
        lines = {line.get_label(): line for line in axes.lines}
        leaders = [
            t.arrow_patch.get_transform().transform_path(t.arrow_patch.get_path())
            for t in axes.texts
        ]
        for text, box in boxes.items():
            others = [b for t, b in boxes.items() if t != text]
            assert not any(box.overlaps(other) for other in others)
            crossing = [x for x in leaders if x.intersects_bbox(box.padded(-3))]
            assert not crossing
            if not text.startswith("early"):
                assert box.x0 > axes.bbox.x1
                continue
            assert axes.bbox.contains(box.x0, box.y0)
            assert axes.bbox.contains(box.x1, box.y1)
            for line in lines.values():
                path = line.get_transform().transform_path(line.get_path())
                assert not path.intersects_bbox(box, filled=False)


def test_run_without_a_value_is_named_in_the_first_panel(tmp_path, figures):
    curves = [Curve("none (diverged at round 1)", []), Curve("run", rows(0.1, trace=1))]
    plot(curves, tmp_path / "f.png", title="t", trace="lr")
    names = [[text.get_text() for text in axes.texts] for axes in figures[0].axes]
    assert names == [["none\n(diverged at round 1)", "run"], ["run"]]


def test_draws_the_mean_of_the_window_and_leaves_out_what_is_not_finite(
    tmp_path, figures
):
    values = rows(0.1, last=4)
    values[3]["accuracy"] = float("nan")
    plot([Curve("a", values)], tmp_path / "f.png", title="t", window=2)
    axes = figures[0].axes[0]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([0.1, 0.15, 0.25])
    assert axes.get_ylabel() == "test accuracy, mean of the last 2"


def test_wide_values_get_a_logarithmic_scale(tmp_path, figures):
    wide = [
        Curve("a", rows(1)),
        Curve("b", [row | {"accuracy": 1e9} for row in rows(1)]),
    ]
    plot(wide, tmp_path / "f.png", title="t")
    plot(wide[:1], tmp_path / "f.png", title="t")
    assert [figure.axes[0].get_yscale() for figure in figures] == ["log", "linear"]


def test_spread_keeps_order_and_stays_inside():
    places = _spread([0.2, 0.98, 0.99, 1.0], [0.1] * 4)
    assert places == pytest.approx([0.2, 0.8, 0.9, 1.0])


def test_plot_run_reads_the_metrics_file(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    for row in rows(0.1):
        writer.write(row.pop("round"), row)
    writer.close()
    assert plot_run(tmp_path) == tmp_path / "figure.png"
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_plot_run_without_metrics(tmp_path):
    with pytest.raises(RunError, match=r"metrics\.jsonl: no metrics to draw"):
        plot_run(tmp_path)
