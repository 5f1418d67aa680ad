"""Task vectors and their geometry, the rule contract, constraints, counter-based noise and errors."""
