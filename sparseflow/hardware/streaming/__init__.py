"""Weight streaming as it really runs here: weights in a store, on the wire, and in two buffers at most."""
