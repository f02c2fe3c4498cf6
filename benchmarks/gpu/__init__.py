"""The benchmark `peers` on a GPU, with kernel launches and host synchronisations."""
