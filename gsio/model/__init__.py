"""The model: the equations, their coefficients and limits, and what a run starts from."""
