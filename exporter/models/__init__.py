"""Where a model comes from: architectures as data, checkpoints, the hub, seeds.

Imports no other station of the street. `weights.load` gives the module and where its weights came from.
"""
