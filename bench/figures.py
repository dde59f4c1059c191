"""One measured figure and the report that all of them make. Pure.

The format is fixed, so that runs can be compared:
``{"machine", "versions", "figures": {ID: {"ours", "reference", "ratio", "unit", "goal", "met", "runs", "spread"}},
"not_run"}``.
"""

from __future__ import annotations

import operator
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

_GOAL = re.compile(r"(<=|>=|==) ([0-9.]+)")
_COMPARE = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


@attrs.frozen
class Figure:
    """Samples of ours, and of the reference where there is one; the goal is for the ratio then, else for ours.

    `goal_of` "ours": the goal is for ours also beside a reference. Without a goal the figure is there to be seen
    beside another one.
    """

    name: str
    ours: Sequence[float]
    unit: str
    goal: str = ""
    reference: Sequence[float] = ()
    note: str = ""
    goal_of: Literal["ratio", "ours"] = "ratio"

    @property
    def ours_median(self) -> float:
        return statistics.median(self.ours)

    @property
    def ratio(self) -> float | None:
        """Of the medians."""
        return self.ours_median / statistics.median(self.reference) if self.reference else None

    @property
    def met(self) -> bool:
        """Whether the goal is reached.

        Raises:
            ValueError: the goal is not of the form ``<= 1.5``.
        """
        match = _GOAL.fullmatch(self.goal)
        if match is None:
            raise ValueError(f"goal {self.goal!r} of {self.name}")
        value = self.ours_median if self.ratio is None or self.goal_of == "ours" else self.ratio
        return bool(_COMPARE[match[1]](value, float(match[2])))

    def row(self) -> dict[str, Any]:
        """For the report."""
        row: dict[str, Any] = {"ours": round(self.ours_median, 3)}
        if self.ratio is not None:
            row["reference"] = round(statistics.median(self.reference), 3)
            row["ratio"] = round(self.ratio, 3)
        row["unit"] = self.unit
        if self.goal:
            row |= {"goal": self.goal, "met": self.met}
        row |= {
            "runs": len(self.ours),
            "spread": [round(min(self.ours), 3), round(max(self.ours), 3)],
        }
        return row | ({"note": self.note} if self.note else {})


def report(
    figures: Sequence[Figure], not_run: Mapping[str, str], machine: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, Any]:
    """The one JSON object."""
    found: dict[str, Any] = {
        "machine": dict(machine),
        "versions": dict(versions),
        "figures": {figure.name: figure.row() for figure in figures},
    }
    return found | ({"not_run": dict(not_run)} if not_run else {})
