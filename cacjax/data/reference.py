"""Records with labels by the reference standard. Arrays are [z, y, x]."""

import numpy as np

from cacjax.kernels.reference import settle


class Settled:
    """The records of a source with their labels as `settle` gives them; made anew at every access, as a source decodes anew."""

    def __init__(self, source, least_mm3: float):
        self.source, self.least_mm3 = source, least_mm3

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        record = self.source[index]
        volume_mm3 = float(np.prod(record["spacing_mm"]))
        return record | {"label": settle(np.asarray(record["label"]), np.asarray(record["hu"]), volume_mm3, self.least_mm3)}
