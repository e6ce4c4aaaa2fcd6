"""What holds for all tests. Properties are not timed: on a machine with other work a slow example is no failure."""

from hypothesis import HealthCheck, settings

settings.register_profile("gearlink", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gearlink")
