"""Worker of `parallel`: ``python -m lightning_snn.data.simulator SPLIT FIRST STRIDE`` writes frames to stdout."""

from __future__ import annotations

import json
import signal
import sys

from .recording import Split


def main() -> None:
    """Write the recordings FIRST, FIRST + STRIDE, ... of SPLIT, a JSON object, one after the other."""
    # Ctrl-C reaches every process of the terminal; the parent ends this one, so that only one traceback is printed
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    split = Split(**json.loads(sys.argv[1]))
    for index in range(int(sys.argv[2]), len(split), int(sys.argv[3])):
        sys.stdout.buffer.write(split.frames(index).tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
