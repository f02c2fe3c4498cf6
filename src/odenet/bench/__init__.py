"""Measurements of the library beside its targets and its peers: `odenet bench NAME`."""

NAMES = ("gradients", "peers")
