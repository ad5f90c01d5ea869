"""Streams, messages over them, identity and trust. `memory` is a Stream for other tests to use too."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.contract")
