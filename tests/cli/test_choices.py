"""Configuration files of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.tiny import parse


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\xff\xfe\x00", "it is truncated or corrupt: 'utf-8' codec"),
        (b"data: [", "it is truncated or corrupt: ParserError"),
        (b"", "got an empty file"),
        (b"!!python/object/apply:os.mkdir [attacked]", "it is truncated or corrupt: ConstructorError"),
        (None, "it is a folder"),
    ],
)
def test_a_damaged_configuration_file_is_named(
    content: bytes | None, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("options.yaml")
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        parse(monkeypatch, "--config", str(path))
    error = capsys.readouterr().err
    assert "Expected options.yaml to " in error
    assert f", but {found}" in error
    assert not Path("attacked").exists()
