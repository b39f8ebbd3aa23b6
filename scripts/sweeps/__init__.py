"""Many runs from one description: what :mod:`scripts.sweep` is made of."""
