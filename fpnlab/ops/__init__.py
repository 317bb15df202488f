"""Arrays in, arrays out: no parameters, no specs, no I/O; imports jax and the types alone."""
