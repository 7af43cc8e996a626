"""Predictions compared with a reference, and with each other."""
