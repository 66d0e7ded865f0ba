"""From features to labels: principal components, clustering, scores, labelers, delegates and mixed points."""
