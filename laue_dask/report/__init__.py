"""Figures and pages, made from the results alone."""
