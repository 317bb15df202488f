"""Arrays in, arrays out: no parameters, no specs, no I/O; needs nothing but jax."""
