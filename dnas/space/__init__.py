"""The search space: choices, couplings, geometry and cost of one model."""
