"""The model: the equations, their coefficients and limits, and the start of a run."""
