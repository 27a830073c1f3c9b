"""Drawing for the benches: one small figure, written whole. Needs matplotlib, which the entry point checks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.rows import Row


@contextmanager
def figure(path: Path, title: str) -> Iterator[Any]:
    """Axes to draw on; the file is written when the block ends. The caption says machine, date and commit by the rows' table."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    axes.set_title(title)
    yield axes
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    drawing.savefig(path, dpi=120, metadata={"Software": None})


def paired_bars(rows: Sequence[Row], path: Path, *, title: str, ours: str, theirs: str) -> None:
    """Our figure beside the baseline for every row that has one."""
    shown = [r for r in rows if r.baseline is not None]
    with figure(path, title) as axes:
        places = range(len(shown))
        axes.bar([p - 0.2 for p in places], [r.value for r in shown], width=0.4, label=ours)
        axes.bar([p + 0.2 for p in places], [r.baseline for r in shown], width=0.4, label=theirs)
        names = [r.name.partition(".")[2].replace(".", "\n") for r in shown]
        axes.set_xticks(list(places), names, fontsize=7)
        axes.set_ylabel(shown[0].unit if shown else "")
        axes.legend()
