"""Cohorts of scans, and the batches that networks learn from."""
