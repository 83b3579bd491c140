"""From embeddings to clusters: points, k-means and other algorithms, choosing k, assignment, metrics, results.

Imports `contract` and `store`, never backends or sources. `clusters.Clustering` is what every algorithm gives.
"""
