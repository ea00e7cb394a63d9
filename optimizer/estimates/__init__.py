"""Passes that update rules need beside, or in place of, a gradient: drawn labels, Hessian products, losses alone."""
