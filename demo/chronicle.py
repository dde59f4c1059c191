"""Writes the demo's input: the chronicle of a made-up harbour, always the same text.

The text is ours and free of rights (CC0). It lies in the repository, so the demo works on a
file like any other; this program shows where it comes from: `python -m demo.chronicle`.
"""

from __future__ import annotations

import datetime
import random
from pathlib import Path

FILE = Path(__file__).resolve().parent / "data" / "chronicle.txt"
# Enough for several parts of some 60 KB each, small enough for a repository.
DAYS = 2200
_SEED = 1887
_SHIPS = (
    "Alcyone", "Bertha Maria", "Cormorant", "Dorothea", "Elder Duck", "Fair Wind", "Gannet", "Halcyon",
    "Ida of Nes", "Juniper", "Kittiwake", "Lodestar", "Marigold", "North Light", "Osprey", "Patience",
)  # fmt: skip
_PORTS = ("Ambersund", "Brackwater", "Cold Haven", "Duneby", "Eastmouth", "Fennick", "Gullholm", "Highlee")
_GOODS = ("barley", "herring", "oak planks", "salt", "wool", "tar", "bricks", "lamp oil", "rye", "slate")
_WINDS = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")
_SKIES = ("clear", "hazy", "overcast", "raining since dawn", "thick with fog", "bright after a squall")
_PEOPLE = (
    "the pilot",
    "the harbour master",
    "the lamp keeper",
    "the sailmaker",
    "the ferryman",
    "the widow Tamm",
)
_DEEDS = (
    "counted the moorings and found one chafed through",
    "swore that the tide was a quarter of an hour late",
    "mended the bell rope with a fisherman's bend",
    "sold two coils of rope and regretted the second",
    "lit the lamp early because the fog came in",
    "wrote three letters and posted none of them",
    "measured four fathoms where the chart says five",
    "lent the small boat to the pilot's nephew",
)


def _arrival(chance: random.Random) -> str:
    ship, port, goods = chance.choice(_SHIPS), chance.choice(_PORTS), chance.choice(_GOODS)
    tons = chance.randint(8, 140)
    return f"The {ship} came in from {port} with {tons} tons of {goods}."


def _departure(chance: random.Random) -> str:
    ship, port = chance.choice(_SHIPS), chance.choice(_PORTS)
    return f"The {ship} left for {port} on the ebb, {chance.randint(3, 14)} hands aboard."


def _remark(chance: random.Random) -> str:
    person = chance.choice(_PEOPLE)
    return f"{person[0].upper()}{person[1:]} {chance.choice(_DEEDS)}."


def _day(chance: random.Random, day: datetime.date) -> str:
    weather = f"Wind {chance.choice(_WINDS)}, force {chance.randint(0, 9)}, sky {chance.choice(_SKIES)}."
    lines = [chance.choice((_arrival, _departure, _remark))(chance) for _ in range(chance.randint(1, 3))]
    return f"{day.isoformat()}. {weather}\n" + "".join(f"  {line}\n" for line in lines)


def text() -> str:
    """The whole chronicle."""
    chance = random.Random(_SEED)
    first = datetime.date(_SEED, 1, 1)
    return "".join(_day(chance, first + datetime.timedelta(days=number)) for number in range(DAYS))


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text(), encoding="ascii")
