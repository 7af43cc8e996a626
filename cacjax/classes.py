"""What labels and Hounsfield units mean, wherever they are read."""

CLASSES = ("background", "LAD", "LCX", "RCA", "TAC", "AV", "MV", "CAC")  # calcium; the last: coronary, artery unknown
ARTERIES = (1, 2, 3, 4, 5, 6)  # what a system that tells arteries apart can answer
CORONARY = (1, 2, 3, 7)
# Bruns 2022 has the first six. The rest within the pericardium, mostly fat, is where the coronary arteries run.
STRUCTURES = ("background", "LV cavity", "RV", "LA", "RA", "LV myocardium", "ascending aorta", "rest within the pericardium")
LV_CAVITY, LA, AORTA = (STRUCTURES.index(name) for name in ("LV cavity", "LA", "ascending aorta"))
AIR_HU = -1000.0  # outside of a scan
OUTSIDE_HU = -32768.0  # that mark themselves as outside: samples between voxels are air as soon as one of these is not of the scan
CALCIUM_HU = 130.0  # the classical threshold (Agatston 1990)
