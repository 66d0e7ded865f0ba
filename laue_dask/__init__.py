"""Index-free segmentation of scanning Laue microdiffraction data, out of core and distributed.

The method is that of Song, Tamura, Zhang, Karami and Chen, *Data-driven approach for synchrotron X-ray Laue
microdiffraction scan analysis*; the names of this package (pattern, scan, feature map, estimator, labeler, label map,
centroid, delegate) are the paper's own.
"""

__version__ = "0.1.0"
