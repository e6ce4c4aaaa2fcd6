"""The benchmark: the server on one core, the load on another, every figure beside a raw reference of the same run."""
