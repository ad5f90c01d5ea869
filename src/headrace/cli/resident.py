"""For a process that stays: a share, a mount."""

from __future__ import annotations

import gc
from typing import Final

# Objects made between two looks for garbage in cycles, and how many looks make one at older objects.
_THRESHOLDS: Final = (20_000, 20, 50)


def stay() -> None:
    """What there is by now will stay, so no look for garbage goes over it again, and there are fewer looks.

    Nearly everything is freed by its count of references. With Python's own settings each small read of a mount paid
    a tenth of its time for looking at modules and classes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
