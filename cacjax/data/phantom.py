"""The phantom cohort: scans of digital thoraces with known calcium, made on the network's grid.

Settings: seed, shape (voxels), grid (its spacing_mm; phantoms are made on it, so its kind changes nothing), splits {name: {protocol,
count, calcified}}; a protocol may be several with commas between, taken in turn. A split whose name starts with "target" is of the
target domain, any other of the source. calcified: the share of a split's patients that are drawn again until they have calcium (half
of a screening cohort has none). labels: "classes" of calcium, or "structures", 0-7 as in cacjax.classes.STRUCTURES.
"""

import functools
import hashlib
import pathlib
import zlib

import tensorflow_datasets as tfds

import cacjax.phantom
from cacjax.data import records
from cacjax.phantom import acquisition, anatomy

CALCIFIED_MM3 = 10.0
PROTOCOLS = ("chest", "cardiac", "ccta", "rtp")
LABELS = ("classes", "structures")
DECIDE_NOTHING = ("__init__", "__main__", "check", "folder", "picture")  # modules of cacjax.phantom that no scan depends on


class PhantomCohort(tfds.core.GeneratorBasedBuilder):
    """tensorflow-datasets builder of phantom scans."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Records on the network's grid."}  # noqa: RUF012  (read by tfds)
    url_infos = None  # nothing is downloaded; looking for a list of downloads would need importlib_resources

    def _info(self):
        return records.info(self)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in self.builder_config.settings["splits"]}

    def _generate_examples(self, split):
        config = self.builder_config
        work = functools.partial(make, settings=config.settings, split=split)
        jobs = range(config.settings["splits"][split]["count"])
        made = records.run(work, jobs, workers=config.workers, title=f"phantom {split}", progress=config.progress)
        yield from enumerate(made)


def settings(data) -> dict:
    """Return what shapes the cohort's records, as plain JSON values; ValueError for what cannot be made.

    Values that change nothing (no share of calcified patients, labels that are classes) are left out: cohorts keep their digests.
    """
    splits = {name: {"protocol": part["protocol"], "count": int(part["count"])} for name, part in data["splits"].items()}
    for name, part in splits.items():
        if share := float(data["splits"][name]["calcified"]):
            part["calcified"] = share
        unknown = set(part["protocol"].split(",")) - set(PROTOCOLS)
        if unknown or part["count"] < 1 or not 0 <= share <= 1:
            raise ValueError(
                f"data.splits.{name}: expected protocols among {', '.join(PROTOCOLS)}, a positive count and a share of calcified "
                f"patients from 0 to 1, got {part}"
            )
    if not splits:
        raise ValueError("data.splits is empty, expected {name: {protocol, count, calcified}}")
    labels = data["labels"]
    if labels not in LABELS:
        raise ValueError(f"data.labels of phantoms must be one of {', '.join(LABELS)}, got {labels!r}")
    grid = {"shape": [int(n) for n in data["shape"]], "spacing_mm": records.grid_of(data)["spacing_mm"]}
    made = {"kind": "phantom", "seed": int(data["seed"]), "splits": splits, "generator": _generator(), **grid}
    return made | ({"labels": labels} if labels != LABELS[0] else {})


def _generator() -> str:
    """Return a digest of the code that decides a scan: scans of an older phantom are not taken for scans of this one."""
    files = sorted(pathlib.Path(cacjax.phantom.__file__).parent.glob("*.py"))
    files = [file for file in files if file.stem not in DECIDE_NOTHING]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def make_builder(settings: dict, *, name: str, root, workers: int, progress: bool) -> PhantomCohort:
    """Return the builder of a cohort under `root`."""
    config = records.CohortConfig(name=name, settings=settings, workers=workers, progress=progress)
    return PhantomCohort(config=config, data_dir=str(root))


def remind(builder) -> None:
    """Nothing can go wrong with single scans."""


def patient_seed(seed: int, split: str, number: int) -> int:
    """Return the seed of a patient: splits have ranges of their own, whatever other splits there are."""
    return seed + 100_000 * (zlib.crc32(split.encode()) % 10_000) + number


def drawn_again(number: int, share: float) -> bool:
    """Whether patient `number` is among the `share` that shall have calcium, evenly spread over a split."""
    return int((number + 1) * share) > int(number * share)


def calcified_seed(seed: int, protocol: str) -> int:
    """Return the first of the seeds `seed`, `seed` + 5000, ... whose patient has at least CALCIFIED_MM3 of coronary calcium."""
    for candidate in range(seed, seed + 100_000, 5_000):
        calcium = anatomy.sample_patient(candidate, acquisition.COHORT_OF[protocol]).calcium
        if calcium["dV"][calcium["cls"] <= 3].sum() >= CALCIFIED_MM3:
            return candidate
    return seed


def make(number: int, *, settings: dict, split: str) -> dict:
    """Return the record of scan `number` of a split; follows from the arguments alone."""
    part = settings["splits"][split]
    protocols = part["protocol"].split(",")
    protocol = protocols[number % len(protocols)]
    seed = patient_seed(settings["seed"], split, number)
    if drawn_again(number, part.get("calcified", 0.0)):
        seed = calcified_seed(seed, protocol)
    grid = {"shape": tuple(settings["shape"]), "spacing_mm": tuple(settings["spacing_mm"])}
    scan = cacjax.phantom.make_scan(protocol, seed, **grid)
    return records.make_record(
        f"{split}-{number:04d}",
        scan.hu,
        scan.structures if settings.get("labels") == "structures" else scan.label,
        scan.heart,
        scan.affine,
        domain="target" if split.startswith("target") else "source",
        protocol=protocol,
        threshold_hu=scan.truth["threshold_hu"],
        aorta_hu=scan.truth["aorta_hu"],
    )
