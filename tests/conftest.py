"""For all tests: in CI the generated examples are the same in every run, so that a red run means a change. No example
has a deadline anywhere: how long one takes is the machine's load, not the code's fault."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_LOADED = [HealthCheck.too_slow]
settings.register_profile("here", deadline=None, suppress_health_check=_LOADED)
settings.register_profile("ci", deadline=None, suppress_health_check=_LOADED, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")
