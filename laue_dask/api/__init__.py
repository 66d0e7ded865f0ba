"""The Python door: what `import laue_dask` offers to notebooks, to scripts and to the command line."""
