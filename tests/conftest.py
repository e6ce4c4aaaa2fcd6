"""What holds for all tests.

Properties are not timed: on a machine with other work a slow example is no failure. A whole run that went well fails all
the same if some route or frame was never used in it: then nobody has tried whether it is as it is described.
"""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("gearlink", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gearlink")

_seen: set[str] = set()  # by the other processes of this run


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist has ended and tells what it saw."""
    _seen.update(getattr(node, "workeroutput", {}).get("seen", ()))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    from tests import traffic  # so that a run of one small test need not load the server

    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["seen"] = sorted(traffic.seen)
        return
    options = session.config.option
    is_whole = session.config.args_source is pytest.Config.ArgsSource.TESTPATHS
    narrowed = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "stepwise", "collectonly")
    is_whole = is_whole and not any(getattr(options, name, None) for name in narrowed)
    missing = traffic.expected() - traffic.seen - _seen
    if is_whole and exitstatus == pytest.ExitCode.OK and missing:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(f"never used in this run: {', '.join(sorted(missing))}", red=True)
