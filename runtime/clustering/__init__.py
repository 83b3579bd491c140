"""From embeddings to clusters: points, k-means and other algorithms, choosing k, assignment, metrics, results.

Imports `contract` and `store`, never backends or sources. The way of a label: `points` (a store's rows, in a metric),
`by_settings` (k and the algorithm), `kmeans` (with `seeding` and `lloyd`), `clusters.Clustering`, `results`.
"""
