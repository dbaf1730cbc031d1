"""A reader of the file of a Weights & Biases run that was kept offline."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

from tests.support.processes import PATIENCE

_HEADER, _BLOCK = 7, 32768
_WHOLE, _LAST = 1, 4  # chunks that end a record


class WandbRun:
    """The only finished run in ``folder/wandb``.

    Attributes:
        begun: project, group and tags.
        config: the configuration.
        values: the last value of each logged key; media have a key per part, ``KEY/_type`` and ``KEY/path``.
        files: the folder that the paths of media are relative to.
        artifacts: the logged artifacts by name.
    """

    def __init__(self, folder: Path) -> None:
        (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        self.files = file.parent / "files"
        deadline = time.monotonic() + PATIENCE
        while not any(record.HasField("exit") for record in _records(file)):
            assert time.monotonic() < deadline, f"{file} has no end"
            time.sleep(0.1)
        records = _records(file)
        (self.begun,) = (record.run for record in records if record.HasField("run"))
        updates = [*self.begun.config.update, *(item for record in records for item in record.config.update)]
        self.config = {item.key: json.loads(item.value_json) for item in updates}
        self.artifacts = {record.artifact.name: record.artifact for record in records if record.HasField("artifact")}
        logged = (item for record in records if record.HasField("history") for item in record.history.item)
        self.values = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in logged}


def _records(path: Path) -> list[Any]:
    """Read the records of a `.wandb` file: a 7-byte header, then blocks of 32 KiB with records split over chunks."""
    from wandb.proto import wandb_internal_pb2

    content, position, parts, records = path.read_bytes(), _HEADER, b"", []
    while position + 7 <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        if position + 7 + length > len(content):
            break  # still being written
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (_WHOLE, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records
