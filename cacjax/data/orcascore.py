"""orCaScore (MICCAI 2014) as a cohort: `python -m cacjax.data.orcascore DIR` writes the manifest.csv by which it is trained on, scored
and evaluated.

The challenge gives a non-contrast scan and a CT angiogram of each patient in MetaImage format (a header and its voxels), 32 for training
and 40 for the test, of four vendors; labels are 1 LAD with the left main artery, 2 LCX, 3 RCA (its pages "Data" and "Submit"; Wolterink
2016). The names are an assumption, after public code that reads the set: TRV1P1CTI.mhd is the non-contrast scan of the training set's
vendor 1, patient 1, TRV1P1CTAI.mhd its angiogram, which is left out, TRV1P1R.mhd its reference, on the non-contrast grid; TE and VA
instead of TR are the test set and what was the on-site one. They are found in any folder below DIR, in upper or lower case.
"""

import argparse
import pathlib
import re

from cacjax.files import manifest

SPLITS = {"TR": "exams", "TE": "test", "VA": "test"}  # the first as configs/cacnet.py calls what it trains on
FILE = re.compile(r"((TR|TE|VA)V(\d+)P(\d+))(CTI|R)\.mhd", re.IGNORECASE)


def rows(folder) -> list[dict]:
    """The manifest's rows of the set in `folder`: training cases, then test cases, each by vendor and patient.

    A test case may lack its reference, which the challenge keeps. Raises ManifestError for no cases, for one that is there twice, and for
    training cases without a reference.
    """
    found = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        if match := FILE.fullmatch(path.name):
            case, of, vendor, patient, kind = (part.upper() for part in match.groups())
            key = list(SPLITS).index(of), int(vendor), int(patient), case
            if found.setdefault(key, {}).setdefault(kind, path) != path:
                raise manifest.ManifestError(f"{path}: expected one such file of case {case}, {found[key][kind]} is another")
    cases = [(key, files) for key, files in sorted(found.items()) if "CTI" in files]
    if not cases:
        raise manifest.ManifestError(f"{folder}: expected non-contrast scans named as TRV1P1CTI.mhd in it or below, found none")
    lacking = [case for (of, *_, case), files in cases if of == 0 and "R" not in files]
    if lacking:
        expected = ", ".join(f"{case}R.mhd" for case in lacking)
        raise manifest.ManifestError(f"{folder}: expected a reference for each training scan, found none of {expected}; copy the set again")
    return [_row(pathlib.Path(folder), key, files) for key, files in cases]


def _row(folder, key, files):
    path = {kind: file.relative_to(folder).as_posix() for kind, file in files.items()}
    split = list(SPLITS.values())[key[0]]
    return {"scan": path["CTI"], "mask": path.get("R", ""), "split": split, "domain": "source", "protocol": "cardiac", "vendor": key[1]}


def main(argv=None):
    """Write the manifest of the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m cacjax.data.orcascore", description="Write the manifest.csv of the orCaScore set.")
    parser.add_argument("folder", metavar="DIR", type=pathlib.Path, help="where the set is; manifest.csv is written there")
    folder = parser.parse_args(argv).folder
    try:
        made = rows(folder)
        path = manifest.write(folder, made)
    except manifest.ManifestError as error:
        raise SystemExit(f"error: {error}") from None
    count = {split: sum(row["split"] == split for row in made) for split in dict.fromkeys(SPLITS.values())}
    unknown = sum(not row["mask"] for row in made)
    print(f"{path}: {', '.join(f'{n} {split}' for split, n in count.items())}; {unknown} without reference")


if __name__ == "__main__":
    main()
