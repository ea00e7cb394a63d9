"""Krylov algorithms on symmetric operators: eigenvalues, trace, norm and spectral density."""
