"""The embedded default data: phantom scans, non-contrast CT as source and coronary CT angiography as target.

Shared by the configs; `kind = "folder"` with `manifest = "/path/manifest.csv"` trains on your own scans instead.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Return the data settings; "tiny" is a heart-centred cohort of 92 small scans, most source patients with calcium."""
    data = ConfigDict()
    data.kind = "phantom"  # or "folder"
    data.manifest = ""  # of "folder"
    # "classes": 0-7 as in cacjax.classes.CLASSES, "structures": 0-7 as in cacjax.classes.STRUCTURES, or "marks": CAC in the calcium that
    # a reader's points lie on; of "phantom" also "visible": CAC where coronary calcium can be seen at any HU value; of "folder" also
    # "overlay": the codes of Lessmann and Zhai
    data.labels = "classes"
    data.directory = ""  # where prepared data lie; empty: CACJAX_DATA_DIR, else ~/.cache/cacjax/datasets
    data.workers = 2  # processes that make or read scans at preparation
    data.seed = 1000
    data.shape = (96, 256, 256)
    # The network's: scans of a folder are resampled to it, "spline" as the published code or "linear" (see cacjax.kernels.grids)
    data.grid = ConfigDict({"kind": "spline", "spacing_mm": (1.5, 0.66, 0.66)})
    data.splits = ConfigDict()
    data.splits.source_train = split("cardiac", 60)
    data.splits.target_train = split("ccta", 60)
    data.folds = 0  # cross-validation: source splits NAME are without fold `fold`, which is NAME_test, of so many folds
    data.fold = 0
    if variant == "tiny":
        data.shape = (80, 208, 208)
        data.splits.source_train.calcified = 0.75  # of 24 unselected patients 10 have calcium: too few to learn it from
        data.splits.target_train.count = 32
    data.loader = ConfigDict({"threads": 1, "workers": 0})
    return data


def split(protocol: str, count: int = 0, *, calcified: float = 0.0, categories: tuple = (), paired: bool = False) -> ConfigDict:
    """A split of phantoms: `count` patients, a share of them with calcium, or so many of each category A to E; paired: two scans of each.

    See cacjax.data.phantom.
    """
    part = {"protocol": protocol, "count": count, "calcified": calcified, "categories": categories, "paired": paired}
    return ConfigDict(part)
