"""Labels of clusters, as in `labels.parquet`: 0 to k - 1, and -1 for points in no cluster."""

NOISE = -1
"""The label of a point in no cluster, the same as scikit-learn's."""
