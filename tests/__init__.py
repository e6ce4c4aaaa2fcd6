"""GearLink's tests: each module's own, the stories told through the whole server, the proof and the benchmark.

Nothing here waits for real time or leaves the machine; `make test` runs all of it, `make proof` and `make bench` the
two programs that are not tests.
"""
