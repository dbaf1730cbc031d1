"""A process of `parallel`: ``python -m lightning_snn.data.simulator SPLIT FIRST STRIDE`` writes raw frames to its output."""

from __future__ import annotations

import json
import sys

from .recording import Split


def main() -> None:
    """Recordings FIRST, FIRST + STRIDE, ... of the split, a JSON object, one after the other."""
    split = Split(**json.loads(sys.argv[1]))
    for index in range(int(sys.argv[2]), len(split), int(sys.argv[3])):
        sys.stdout.buffer.write(split.frames(index).tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
