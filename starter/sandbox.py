"""The sandbox, as the starter sees it: a place, the way in, the way out. One name for what several modules
make."""

from pilot.farside import Asking as Context
from pilot.farside import CallFailed as StageFailed
from starter.entries import (
    Account,
    Catalogue,
    CatalogueEntry,
    Changed,
    Listed,
    Manifest,
    OutDirectory,
    OutFile,
    Wanted,
)
from starter.places import Left, Place, Unsafe, make_place, remove_place
from starter.stagein import Inward, stage_in
from starter.stageout import Elsewhere, Outward, Search, Uploads, stage_out
from starter.tarstream import Limits

__all__ = [
    "Account",
    "Catalogue",
    "CatalogueEntry",
    "Changed",
    "Context",
    "Elsewhere",
    "Inward",
    "Left",
    "Limits",
    "Listed",
    "Manifest",
    "OutDirectory",
    "OutFile",
    "Outward",
    "Place",
    "Search",
    "StageFailed",
    "Unsafe",
    "Uploads",
    "Wanted",
    "make_place",
    "remove_place",
    "stage_in",
    "stage_out",
]
