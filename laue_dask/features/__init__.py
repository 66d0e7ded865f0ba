"""What makes features of reduced patterns: the network and its weights, principal components of pixels, peaks."""
