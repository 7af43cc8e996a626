"""The embedded default data: phantom scans, non-contrast CT as source and coronary CT angiography as target.

Shared by the configs; `kind = "folder"` with `manifest = "/path/manifest.csv"` trains on your own scans instead.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Return the data settings; "tiny" is a heart-centred cohort of 92 small scans, most source patients with calcium."""
    data = ConfigDict()
    data.kind = "phantom"  # or "folder"
    data.manifest = ""  # of "folder"
    data.order = 3  # of "folder": spline order of resampling to the network's grid, as the published code; 1 is linear
    # "classes": 0-6 as in cacjax.kernels.scores.CLASSES, or "structures": 0-7 as in cacjax.scoring.hearts.STRUCTURES; of "folder" also
    # "overlay": the codes of Lessmann and Zhai
    data.labels = "classes"
    data.directory = ""  # where prepared data lie; empty: CACJAX_DATA_DIR, else ~/.cache/cacjax/datasets
    data.workers = 2  # processes that make or read scans at preparation
    data.seed = 1000
    data.shape = (96, 256, 256)
    data.spacing_mm = (1.5, 0.66, 0.66)
    data.splits = ConfigDict()
    data.splits.source_train = ConfigDict({"protocol": "cardiac", "count": 60})
    data.splits.target_train = ConfigDict({"protocol": "ccta", "count": 60})
    if variant == "tiny":
        data.shape = (80, 208, 208)
        data.splits.source_train.calcified = 0.75  # of 24 unselected patients 10 have calcium: too few to learn it from
        data.splits.target_train.count = 32
    data.loader = ConfigDict({"threads": 1, "workers": 0})
    return data
