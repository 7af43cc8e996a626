"""Cases of labelling: ours against scipy, which the published evaluation uses, and cc3d, which a good user takes today."""

import labelling
from race import Case


def cases(device: str, only: str = ""):
    """Each mask at 26-connectivity; labelling.py itself has the full table."""
    for name in labelling.CASES if only in "labelling" else ():
        works = labelling.contenders(*labelling.case(name, quick=False), 26)
        yield Case("labelling", f"{name}, 26-connected", works["ours_ms"], works["scipy_ms"], works["cc3d_ms"])
