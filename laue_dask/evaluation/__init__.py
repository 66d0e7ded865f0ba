"""Comparison of segmentations with a true map, in scores."""
