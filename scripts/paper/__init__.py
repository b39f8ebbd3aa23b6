"""The figures of the paper: toys whose mathematics is closed, and grids of trained networks."""
