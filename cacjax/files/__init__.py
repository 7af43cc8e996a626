"""Scans in, masks out: DICOM, NIfTI, MHA, NRRD, and what must be right about them."""
