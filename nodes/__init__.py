"""The nodes a user drags; each file ends with NODES = [...]."""
