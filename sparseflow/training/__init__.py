"""WHEN. Joins masks, hardware and files: pruning a model, training it, and the search for tickets."""
