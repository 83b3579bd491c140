"""Labels of clusters, as `labels.parquet` has them: 0 to k - 1, and one for points in no cluster."""

NOISE = -1
"""The label of a point in no cluster, as scikit-learn has it."""
