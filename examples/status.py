#!/usr/bin/env python3
"""A program that reports its progress: backbeat run --agent a1 --task train --budget 8 -- examples/status.py

It also runs without backbeat.
"""

import json
import os
import time


def append_status(**status):
    """Appends a status line with state, progress (0 to 1), notes or help; a field that is left out keeps its value."""
    with open(os.environ.get("BACKBEAT_STATUS_FILE", os.devnull), "a", encoding="utf-8") as file:
        print(json.dumps(status), file=file)


for epoch in range(1, 5):
    append_status(progress=epoch / 4, notes=f"epoch {epoch} of 4")
    time.sleep(float(os.environ.get("STEP_SECONDS", "1")))
append_status(state="review", help="requested", notes="please look at the model")
