"""Step records handed to observers."""
