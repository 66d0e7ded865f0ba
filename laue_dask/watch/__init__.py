"""The live map: a folder that a detector still writes to, watched until the scan is over (section 6 of the paper).

What is shown meanwhile is a preview. What is kept are the blocks of the scan store that `laue-dask run` would write,
written by the same functions as soon as their frames are there; at the end `single_scan.run` takes over, finds them,
and does the rest. So the result is that of `run`, to the last bit, whatever happened while the scan went on.
"""
