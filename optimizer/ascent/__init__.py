"""Ascents: perturbations, the second gradient, the shear, and the triggers that request them."""
