#!/usr/bin/env python3
"""A program that says how far it is: backbeat run --agent a1 --task train --budget 8 -- examples/status.py

Without backbeat it runs as well.
"""

import json
import os
import time


def say(**status):
    """Appends a line: state, progress (0 to 1), notes, help; what is left out stays as it was."""
    with open(os.environ.get("BACKBEAT_STATUS_FILE", os.devnull), "a", encoding="utf-8") as file:
        print(json.dumps(status), file=file)


for epoch in range(1, 5):
    say(progress=epoch / 4, notes=f"epoch {epoch} of 4")
    time.sleep(float(os.environ.get("STEP_SECONDS", "1")))
say(state="review", help="requested", notes="please look at the model")
