"""Files: readers of frames, the place of each frame on the grid, scan stores, results, locks and checksums."""
