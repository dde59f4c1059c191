"""The picture of calls over time, ours beside HTCondor 8.8's. Drawing only; the numbers are `bench.spreadmodel`'s."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
from PIL import Image, ImageDraw, ImageFont

from bench.spreadmodel import PROCESSES_A_JOB, STOCK_CALL_S, Loss, our_calls, per_second, stock_calls
from procd.planner import Spread

SEED = 0
SECONDS = 22
PANEL = (470, 170)
# Room for the numbers left of a panel and for its title above it; below the last one for the seconds.
LEFT, TOP, BOTTOM, GAP = 60, 30, 26, 14
HEAD = 60

INK, FAINT, STOCK, OURS = (40, 40, 40), (215, 215, 215), (240, 178, 122), (31, 97, 141)
ROWS, COLUMNS = (1, 10, 1000), (1, 8)


@attrs.frozen
class _Panel:
    """One set of axes: `corner` is where its upper left is, outside the numbers and the title."""

    canvas: ImageDraw.ImageDraw
    corner: tuple[int, int]
    top: float

    def point(self, second: float, height: float) -> tuple[float, float]:
        x, y = self.corner
        inner_width, inner_height = PANEL[0] - LEFT - GAP, PANEL[1] - TOP - BOTTOM
        return x + LEFT + inner_width * second / SECONDS, y + TOP + inner_height * (1 - height / self.top)

    def bars(self, counts: Iterable[int], colour: tuple[int, int, int], *, margin: float) -> None:
        """One bar a second, `margin` of its second free on both sides."""
        for second, count in enumerate(counts):
            if count:
                left, right = second + margin, second + 1 - margin
                self.canvas.rectangle([self.point(left, count), self.point(right, 0)], fill=colour)

    def frame(self, title: str) -> None:
        font = ImageFont.load_default(13)
        for part in (0.5, 1.0):
            height = self.top * part
            self.canvas.line([self.point(0, height), self.point(SECONDS, height)], fill=FAINT)
            x, y = self.point(0, height)
            self.canvas.text((x - 6, y), f"{height:,.0f}", INK, font, anchor="rm")
        self.canvas.line([self.point(0, 0), self.point(SECONDS, 0)], fill=INK)
        for second in range(0, SECONDS, 5):
            x, y = self.point(second, 0)
            self.canvas.text((x, y + 4), f"{second} s", INK, font, anchor="ma")
        self.canvas.text((self.corner[0] + LEFT, self.corner[1] + 8), title, INK, ImageFont.load_default(14))


def picture(spread: Spread) -> Image.Image:
    """1, 10 and 1,000 pilots that lose 1 and 8 jobs each: calls in each second after the loss."""
    image = Image.new("RGB", (PANEL[0] * len(COLUMNS), HEAD + PANEL[1] * len(ROWS)), "white")
    canvas = ImageDraw.Draw(image)
    _head(canvas)
    for row, pilots in enumerate(ROWS):
        for column, jobs in enumerate(COLUMNS):
            _panel(canvas, (column * PANEL[0], HEAD + row * PANEL[1]), Loss(pilots, jobs), spread)
    # Flat colours: a palette makes the file a third as big.
    return image.quantize(32)


def _head(canvas: ImageDraw.ImageDraw) -> None:
    font = ImageFont.load_default(15)
    lines = (
        (STOCK, f"HTCondor 8.8: one call a process ({PROCESSES_A_JOB} a job, {STOCK_CALL_S:g} s a call), at once"),
        (OURS, "Sailplane: one call a job, spread"),
    )
    for number, (colour, words) in enumerate(lines):
        y = 12 + 22 * number
        canvas.rectangle([LEFT, y, LEFT + 16, y + 14], fill=colour)
        canvas.text((LEFT + 24, y + 7), words, INK, font, anchor="lm")


def _panel(canvas: ImageDraw.ImageDraw, corner: tuple[int, int], loss: Loss, spread: Spread) -> None:
    ours, stock = per_second(our_calls(loss, spread, SEED)), per_second(stock_calls(loss))
    panel = _Panel(canvas, corner, _round_up([*ours, *stock]))
    panel.bars(stock, STOCK, margin=0.0)
    panel.bars(ours, OURS, margin=0.2)
    panel.frame(
        f"{loss.pilots:,} {_plural(loss.pilots, 'pilot')}, {loss.jobs} {_plural(loss.jobs, 'job')} each: calls a second"
    )


def _plural(number: int, noun: str) -> str:
    return noun if number == 1 else noun + "s"


def _round_up(counts: Sequence[int]) -> int:
    """A little above the highest: the axis' end."""
    highest = max(counts)
    step = 2 * int(10 ** (len(str(highest)) - 1))
    return step * (highest // step + 1)
