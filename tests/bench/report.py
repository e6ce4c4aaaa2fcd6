"""Figures and how they are told: the median of several repetitions, what was aimed at, and the ratio to a raw reference."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all are below."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@dataclass(frozen=True)
class Figure:
    """One figure. `aim` is the least or (with `less_is_better`) the most that is wanted; None where nothing is.

    `ratio_aim` is the most that is wanted of the ratio to the reference, where that is what matters.
    """

    name: str
    unit: str
    samples: tuple[float, ...]
    reference_name: str
    reference_samples: tuple[float, ...]
    aim: float | None = None
    less_is_better: bool = False
    ratio_aim: float | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.samples)

    @property
    def reference(self) -> float:
        return statistics.median(self.reference_samples)

    @property
    def ratio(self) -> float:
        return self.value / self.reference if self.reference else 0.0

    @property
    def reached(self) -> bool:
        in_itself = self.aim is None or (self.value <= self.aim if self.less_is_better else self.value >= self.aim)
        return in_itself and (self.ratio_aim is None or self.ratio <= self.ratio_aim)

    def line(self) -> str:
        verdict = "" if self.aim is None else f"  aim {'<' if self.less_is_better else '>'} {_short(self.aim)}"
        verdict += "" if self.ratio_aim is None else f"  aim of the ratio < {_short(self.ratio_aim)}"
        verdict += "" if self.reached else "  NOT REACHED"
        spread = f"[{_short(min(self.samples))} … {_short(max(self.samples))}]"
        return (
            f"  {self.name:34} {_short(self.value):>10} {self.unit:13} {spread:24}{verdict}\n"
            f"  {'':34} {self.ratio:>10.3g} x {self.reference_name} ({_short(self.reference)})"
        )


def _short(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def save(figures: Sequence[Figure], path: Path) -> None:
    """All figures with all their samples, as JSON."""
    told = [
        {**asdict(each), "value": each.value, "reference": each.reference, "reached": each.reached} for each in figures
    ]
    path.write_text(json.dumps(told, indent=2) + "\n")
