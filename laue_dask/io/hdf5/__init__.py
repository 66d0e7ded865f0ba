"""Frames in HDF5 files: which dataset holds them, what its axes mean, one frame of it, and what lies beside it.

A header is a claim here: a frame counts as one only where its bytes are there. Fill values, be they of chunks that were
never written or of virtual datasets whose sources are gone, are no data.

Strings of variable length are never read: h5py can crash on them when several threads do. Files are opened without
HDF5's file lock, so that a folder which may only be read, or a file still being written, can be used.
"""

from laue_dask.io.hdf5.discovery import Stack, find_frames, grid_of, parts
from laue_dask.io.hdf5.files import SUFFIXES, UnreadableError, holder, linked_files
from laue_dask.io.hdf5.masks import PixelMask, pixel_mask
from laue_dask.io.hdf5.reading import read_frame, read_header

__all__ = [
    "SUFFIXES",
    "PixelMask",
    "Stack",
    "UnreadableError",
    "find_frames",
    "grid_of",
    "holder",
    "linked_files",
    "parts",
    "pixel_mask",
    "read_frame",
    "read_header",
]
