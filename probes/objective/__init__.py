"""A loss on fixed data as a function of the parameters."""
