"""Scans with known truth and patterns to train on, from a kinematic model of Laue diffraction."""
