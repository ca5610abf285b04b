"""How seldom Python looks for objects that refer to each other in a process that serves; knows nothing of what it does.

Python looks after every 700 objects that are new and still there. A batch of changes makes thousands, which are there
until it is on the disk: looking for garbage among them took a quarter of the time that durable changes take.
"""

from __future__ import annotations

import gc

NEW_OBJECTS = 50_000  # between two looks; a few megabytes


def collect_rarely() -> None:
    """Look seldom from now on, and never again at what is there now, which stays."""
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])
