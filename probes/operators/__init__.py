"""Hessian, Gauss-Newton and Fisher as matrix-free symmetric operators."""
