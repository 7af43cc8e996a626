"""Kinds of inputs of the corpus: each a function that makes one input, and what must become of it."""

from collections.abc import Callable
from typing import NamedTuple

MUST = {
    "same": "scored as the clean scan",
    "flagged": "scored as the clean scan, with a reason that the clean scan has not",
    "refused": "refused, for one of the given reasons where some are given",
    "either": "scored as the clean scan, or refused",
    "about": "scored within a factor of two of the clean scan, or refused: voxels have changed that no reader can tell from true ones",
    "answer": "one row, whatever it says: the header has changed to another that may be true",
}


class Kind(NamedTuple):
    """One kind of input. make(place) -> path of the input; must: a key of MUST; codes: of the refusal, none given: any."""

    make: Callable
    must: str
    codes: tuple = ()


KINDS: dict[str, Kind] = {}


def kind(must, *codes):
    """Decorator of a function of a `clean.Place` that makes an input: the kind has the function's name."""

    def add(make):
        KINDS[make.__name__] = Kind(make, must, codes)
        return make

    return add


def family(stem, variants, must, *codes):
    """Decorator of a function (place, variant): a kind `stem_name` for each {name: variant}."""

    def add(make):
        for name, variant in variants.items():
            KINDS[f"{stem}_{name}"] = Kind(lambda place, variant=variant: make(place, variant), must, codes)
        return make

    return add
