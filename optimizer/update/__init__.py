"""Update rules: Adam moments, Newton-Schulz orthogonalization, and the routing of parameters to them."""
