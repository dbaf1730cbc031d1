"""AEDAT files of each version, written by the test from the description of the format."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lightning_snn.data import Events, frame_events, read_aedat
from tests.support.aedat import (
    AEDAT2_LINES,
    AEDAT3_HEADER,
    Columns,
    aedat2_records,
    aedat3_packet,
    aedat3_polarity,
    aedat4_events,
    aedat4_file,
    aedat4_stream,
    davis_address,
    dvs128_address,
    dvs640_address,
    flatbuffer,
)

DAVIS346 = (260, 346)


def random_events(count: int, size: tuple[int, int] = (128, 128), seed: int = 0, start: int = 0) -> Columns:
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, size[1], count), generator.integers(0, size[0], count)
    return x, y, generator.integers(0, 2, count), np.arange(count) * 10 + start


def same(found: Events, expected: Columns) -> bool:
    return all(np.array_equal(one, two) for one, two in zip(found, expected, strict=True))


def part(events: Events, *bounds: int) -> Events:
    return tuple(column[slice(*bounds)] for column in events)  # type: ignore[return-value]


def test_polarity_events_are_read_from_aedat(tmp_path: Path) -> None:
    x, y, p, _ = random_events(200)
    t = np.arange(200) * 10
    data = AEDAT3_HEADER + aedat3_polarity(part((x, y, p, t), 0, 120), spare=3)
    data += aedat3_packet(0, b"\x01" * 16, 8, 2, 2) + aedat3_packet(3, b"\x07" * 36, 36, 1, 1)
    data += aedat3_polarity(part((x, y, p, t), 120, 130), valid=False)
    data += aedat3_polarity(part((x, y, p, t), 130, 200))
    (tmp_path / "a.aedat").write_bytes(data)
    kept = np.r_[0:120, 130:200]
    for found, expected in zip(read_aedat(tmp_path / "a.aedat"), (x, y, p, t), strict=True):
        assert np.array_equal(found, expected[kept])


def test_times_beyond_31_bits_take_their_high_part_from_the_packet(tmp_path: Path) -> None:
    zeros = np.zeros(2, np.int64)
    t = np.array([3 * 2**31 + 5, 3 * 2**31 + 2**31 - 1])
    (tmp_path / "a.aedat").write_bytes(AEDAT3_HEADER + aedat3_polarity((zeros, zeros, zeros, t)))
    assert np.array_equal(read_aedat(tmp_path / "a.aedat")[3], t)


def test_a_first_packet_that_looks_like_a_header_line_is_a_packet(tmp_path: Path) -> None:
    events = random_events(20)
    data = AEDAT3_HEADER + aedat3_packet(ord("#"), b"\n" * 8, 8, 1, 1) + aedat3_polarity(events)
    (tmp_path / "a.aedat").write_bytes(data)
    assert np.array_equal(read_aedat(tmp_path / "a.aedat")[0], events[0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.aedat to be an AEDAT file, .* but it starts with b''"),
        (b"#!AER-DAT3.0\r\n", "a.aedat to be an AEDAT file, .*2.0, 3.1 or 4.0, but it starts with b'#!AER-DAT3.0'"),
        (b"\x89HDF\r\n", "a.aedat to be an AEDAT file"),
        (AEDAT3_HEADER[:20], "header line at byte 14 of .*a.aedat to end, but it does not"),
        (AEDAT3_HEADER, "a.aedat to hold valid polarity events, but got none"),
        (AEDAT3_HEADER + b"\x01" * 20, "a.aedat to hold 28 bytes from byte .*truncated"),
        (
            AEDAT3_HEADER + aedat3_polarity(random_events(20))[:-1],
            "a.aedat to hold 160 bytes from byte .*truncated",
        ),
        (
            AEDAT3_HEADER + aedat3_packet(1, b"", 8, 2, 3),
            "a.aedat to hold a packet header at byte .*number of events 3",
        ),
        (AEDAT3_HEADER + aedat3_packet(1, b"", 12, 0, 0), "a.aedat to hold a packet header at byte .*event size 12"),
        (AEDAT3_HEADER + aedat3_polarity(random_events(20), valid=False), "a.aedat to hold valid polarity events"),
    ],
)
def test_a_damaged_aedat_file_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.aedat").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_aedat(tmp_path / "a.aedat")


def test_the_time_overflow_of_a_packet_is_not_negative(tmp_path: Path) -> None:
    (tmp_path / "a.aedat").write_bytes(AEDAT3_HEADER + aedat3_packet(1, b"\x01" * 8, 8, 1, 1, overflow=-1))
    with pytest.raises(ValueError, match="time overflow -1"):
        read_aedat(tmp_path / "a.aedat")


def dvs128_file(events: Columns, lines: bytes = b"# AEChip: ch.unizh.ini.jaer.chip.retina.DVS128\r\n") -> bytes:
    rows = zip(*(column.tolist() for column in events), strict=True)
    return AEDAT2_LINES + lines + aedat2_records([(dvs128_address(x, y, p), t) for x, y, p, t in rows])


def davis_file(events: Columns, lines: bytes = b"", size: tuple[int, int] = DAVIS346) -> bytes:
    rows = zip(*(column.tolist() for column in events), strict=True)
    return AEDAT2_LINES + lines + aedat2_records([(davis_address(x, y, p, size), t) for x, y, p, t in rows])


@pytest.mark.parametrize("size", [None, (128, 128)])
def test_events_of_a_dvs128_are_read_upright(size: tuple[int, int] | None, tmp_path: Path) -> None:
    events = random_events(500)
    (tmp_path / "a.aedat").write_bytes(dvs128_file(events))
    assert same(read_aedat(tmp_path / "a.aedat", sensor_size=size), events)


def test_the_bits_of_a_dvs128_address_are_those_of_jaer(tmp_path: Path) -> None:
    # x is bits 1 to 7 and y bits 8 to 14, both from the lower right corner; a set bit 0 is a decrease of light
    data = AEDAT2_LINES + bytes.fromhex("00000000 0000000700007fff 0000000800000502 00000009")
    (tmp_path / "a.aedat").write_bytes(data)
    x, y, p, t = read_aedat(tmp_path / "a.aedat", sensor_size=(128, 128))
    assert list(zip(x.tolist(), y.tolist(), p.tolist(), t.tolist(), strict=True)) == [
        (127, 127, 1, 7),
        (0, 0, 0, 8),
        (126, 122, 1, 9),
    ]


@pytest.mark.parametrize(
    ("lines", "size", "given"),
    [
        (b"", DAVIS346, DAVIS346),
        (b"", (180, 240), (180, 240)),
        (b"# AEChip: eu.seebetter.ini.chips.davis.Davis346blue\r\n", DAVIS346, None),
        (b"# AEChip: eu.seebetter.ini.chips.davis.DAVIS240C\r\n#End Of ASCII Header\r\n", (180, 240), None),
    ],
)
def test_events_of_a_davis_are_read_upright(lines: bytes, size, given, tmp_path: Path) -> None:
    events = random_events(500, size)
    (tmp_path / "a.aedat").write_bytes(davis_file(events, lines, size))
    assert same(read_aedat(tmp_path / "a.aedat", sensor_size=given), events)


@pytest.mark.parametrize("lines", [b"", b"# AEChip: ch.unizh.ini.jaer.chip.retina.DVS640\r\n"])
def test_events_of_a_dvs640_are_read_upright(lines: bytes, tmp_path: Path) -> None:
    events = random_events(500, (480, 640))
    rows = zip(*(column.tolist() for column in events), strict=True)
    records = [(dvs640_address(x, y, p), t) for x, y, p, t in rows]
    (tmp_path / "a.aedat").write_bytes(AEDAT2_LINES + lines + aedat2_records(records))
    assert same(read_aedat(tmp_path / "a.aedat", sensor_size=None if lines else (480, 640)), events)


def test_samples_of_frames_motion_and_external_inputs_are_no_events(tmp_path: Path) -> None:
    event = davis_address(5, 6, 1, DAVIS346)
    others = [event | 1 << 31, event | 1 << 10, event | 1 << 31 | 3 << 10]
    (tmp_path / "a.aedat").write_bytes(AEDAT2_LINES + aedat2_records([(a, 4) for a in (*others, event, *others)]))
    x, y, p, t = read_aedat(tmp_path / "a.aedat", sensor_size=DAVIS346)
    assert (x.tolist(), y.tolist(), p.tolist(), t.tolist()) == ([5], [6], [1], [4])
    (tmp_path / "b.aedat").write_bytes(AEDAT2_LINES + aedat2_records([(0x8000, 3), (dvs128_address(9, 8, 0), 4)]))
    assert read_aedat(tmp_path / "b.aedat", sensor_size=(128, 128)).x.tolist() == [9]


def test_a_clock_of_32_bits_that_wraps_goes_on(tmp_path: Path) -> None:
    t = [2**31 - 5, 2**31 + 5, 2**32 - 10, 2**32 + 10, 2**32 + 5]
    (tmp_path / "a.aedat").write_bytes(AEDAT2_LINES + aedat2_records([(0, time) for time in t]))
    assert read_aedat(tmp_path / "a.aedat", sensor_size=(128, 128)).t.tolist() == sorted(t)


def test_a_first_record_that_starts_like_a_header_line_is_a_record(tmp_path: Path) -> None:
    y = DAVIS346[0] - 1 - (0x23 << 2)  # rows whose address starts with the byte of `#`
    events = (np.array([0x0A, 345]), np.array([y, y]), np.array([1, 0]), np.array([0x0A00, 0x0A0A]))
    for end in (b"", b"#End Of ASCII Header\r\n"):
        (tmp_path / "a.aedat").write_bytes(davis_file(events, end))
        assert same(read_aedat(tmp_path / "a.aedat", sensor_size=DAVIS346), events)


CHIP = b"# AEChip: eu.seebetter.ini.chips.davis.Davis346blue\r\n"


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (dvs128_file(random_events(9), b""), None, r"argument `sensor_size`, because the header of .*a.aedat names no"),
        (dvs128_file(random_events(9))[:-3], None, "a.aedat to hold events of 8 bytes from byte .* truncated"),
        (AEDAT2_LINES, (128, 128), "a.aedat to hold polarity events, but got none in 0 records"),
        (AEDAT2_LINES + aedat2_records([(1 << 31, 0)]), DAVIS346, "got none in 1 records"),
        (
            davis_file(random_events(9, DAVIS346), CHIP),
            (180, 240),
            r"`sensor_size` to be \(260, 346\), because .*Davis346",
        ),
        (
            davis_file(random_events(9, DAVIS346)),
            (180, 240),
            "a.aedat to lie on the sensor of 180 rows",
        ),
        (davis_file(random_events(9, DAVIS346)), (128, 128), "addresses of a DVS128, but got addresses of a DAVIS"),
        (davis_file(random_events(9, DAVIS346)), (480, 640), "a DVS640, but got addresses of a DAVIS. .*rows, columns"),
        (dvs128_file(random_events(9), b""), (480, 640), r"a DVS640, but got .* a DVS128. .*\(128, 128\)"),
        (dvs128_file(random_events(9), b""), DAVIS346, "addresses of a DAVIS, but got addresses of a DVS128"),
        (AEDAT2_LINES + b"# AEChip: a.b.Cochlea\r\n", None, "a camera of dvs128, .*but its header names a.b.Cochlea"),
        (AEDAT2_LINES[:8], None, "to be an AEDAT file"),
        (AEDAT2_LINES[:12], None, "first line of .*a.aedat to end, but it does not"),
        (AEDAT2_LINES + aedat2_records([(0, 5_000_000), (0, 9)]), (128, 128), "at event 1 the time falls back"),
    ],
)
def test_a_damaged_or_unclear_aedat2_file_is_named(data: bytes, size, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.aedat").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_aedat(tmp_path / "a.aedat", sensor_size=size)


STREAMS = (aedat4_stream(0, "EVTS", DAVIS346), aedat4_stream(1, "FRME", DAVIS346), aedat4_stream(2, "IMUS"))
UNIX = 1_600_000_000_000_000


def packets(events: Columns) -> list[tuple[int, bytes]]:
    """Packets of events among others, which hold no FlatBuffer of events."""
    other = flatbuffer(b"IMUS", [struct.pack("<q", 5), None])
    return [(2, other), (0, aedat4_events(part(events, 0, 7))), (1, other), (0, aedat4_events(part(events, 7, None)))]


def lz4(data: bytes) -> bytes:
    return pytest.importorskip("lz4.frame", reason="lz4 is not installed").compress(data)


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard", reason="zstandard is not installed").ZstdCompressor().compress(data)


def zstd_stream(data: bytes) -> bytes:
    """A frame that does not give the size of its content."""
    compressor = pytest.importorskip("zstandard", reason="zstandard is not installed").ZstdCompressor().compressobj()
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(("code", "compress"), [(0, bytes), (1, lz4), (2, lz4), (3, zstd), (4, zstd), (3, zstd_stream)])
@pytest.mark.parametrize("table", [None, b"the table of packets"])
def test_events_of_an_aedat4_file_are_read(
    code: int, compress: Callable[[bytes], bytes], table: bytes | None, tmp_path: Path
) -> None:
    events = random_events(300, DAVIS346, start=UNIX)
    (tmp_path / "a.aedat4").write_bytes(aedat4_file(packets(events), STREAMS, code, compress, table))
    found = read_aedat(tmp_path / "a.aedat4")
    assert same(found, events)
    assert frame_events(*found, time_steps=5, sensor_size=DAVIS346).sum() == 300


def test_one_of_several_event_streams_is_chosen_by_its_number(tmp_path: Path) -> None:
    first, second = random_events(20, DAVIS346), random_events(30, DAVIS346, seed=1)
    streams = (aedat4_stream(0, "EVTS", DAVIS346), aedat4_stream(4, "EVTS", DAVIS346))
    data = aedat4_file([(0, aedat4_events(first)), (4, aedat4_events(second))], streams)
    (tmp_path / "a.aedat4").write_bytes(data)
    assert same(read_aedat(tmp_path / "a.aedat4", stream=0), first)
    assert same(read_aedat(tmp_path / "a.aedat4", stream=4), second)
    with pytest.raises(ValueError, match=r"one event stream; pass `stream` \(streams: 0: EVTS, 4: EVTS\)"):
        read_aedat(tmp_path / "a.aedat4")
    with pytest.raises(ValueError, match=r"an event stream 3 \(streams"):
        read_aedat(tmp_path / "a.aedat4", stream=3)
    (tmp_path / "b.aedat").write_bytes(AEDAT3_HEADER + aedat3_polarity(first))
    with pytest.raises(ValueError, match="`stream` to be None for .*b.aedat, which is no AEDAT 4.0 file, but got 0"):
        read_aedat(tmp_path / "b.aedat", stream=0)


EVENTS = random_events(40, DAVIS346)
WHOLE = aedat4_file(packets(EVENTS), STREAMS)
OUTSIDE = (np.array([346]), np.array([0]), np.array([1]), np.array([0]))
BEFORE = (np.array([0]), np.array([0]), np.array([1]), np.array([-1]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (WHOLE[:10], "to be an AEDAT file"),
        (WHOLE[:40], "a whole AEDAT 4.0 file, but a FlatBuffer IOHE of .* bytes is truncated or of another kind"),
        (WHOLE[:1000], "its packets would end at byte .* of 1000: it is truncated"),
        (aedat4_file(packets(EVENTS), STREAMS, table=None)[:-5], "would be .* bytes long, of .* left"),
        (aedat4_file(packets(EVENTS), STREAMS, table=b"")[:-3], "it is truncated"),
        (aedat4_file(packets(EVENTS), STREAMS, 9), "its compression 9 is unknown"),
        (aedat4_file(packets(EVENTS), STREAMS[1:]), r"one event stream; pass `stream` \(streams: 1: FRME, 2: IMUS\)"),
        (aedat4_file(packets(EVENTS), ["<node>"]), "a whole AEDAT 4.0 file, but mismatched tag"),
        (aedat4_file([(0, flatbuffer(b"FRME", [None]))], STREAMS), "FlatBuffer EVTS of .* of another kind"),
        (aedat4_file([(0, flatbuffer(b"EVTS", [(b"", 7)]))], STREAMS), "a vector of 7 items ends after its FlatBuffer"),
        (aedat4_file([(0, b"")], STREAMS), "a FlatBuffer of 0 bytes has no number at byte 0"),
        (aedat4_file([(0, flatbuffer(b"EVTS", [None]))], STREAMS), "a.aedat4 to hold at least one event"),
        (aedat4_file([], STREAMS), "a.aedat4 to hold at least one event"),
        (aedat4_file([(0, aedat4_events(OUTSIDE))], STREAMS), "a.aedat4 to lie on the sensor of 260 rows and 346"),
        (aedat4_file([(0, aedat4_events(BEFORE))], STREAMS), "a.aedat4 to hold times from 0 on, but got -1 us"),
    ],
)
def test_a_damaged_aedat4_file_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.aedat4").write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_aedat(tmp_path / "a.aedat4")
    assert "a.aedat4" in str(error.value)


@pytest.mark.parametrize(("code", "compress"), [(1, lz4), (3, zstd)])
def test_a_corrupt_compressed_packet_is_named(code: int, compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "a.aedat4").write_bytes(
        aedat4_file([(0, aedat4_events(EVENTS))], STREAMS, code, lambda data: compress(data)[:-40])
    )
    with pytest.raises(ValueError, match="a.aedat4 to be a whole AEDAT 4.0 file, but a"):
        read_aedat(tmp_path / "a.aedat4")


@pytest.mark.parametrize(("code", "module", "package"), [(1, "lz4.frame", "lz4"), (4, "zstandard", "zstandard")])
def test_a_missing_package_is_an_error_that_says_what_to_install(
    code: int, module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "a.aedat4").write_bytes(aedat4_file(packets(EVENTS), STREAMS, code))
    with pytest.raises(ImportError, match=rf"{package} to be installed, .*a.aedat4 needs: .*lightning-snn\[events\]"):
        read_aedat(tmp_path / "a.aedat4")


def test_any_damaged_byte_of_the_header_is_read_or_refused(tmp_path: Path) -> None:
    """A damaged file is never an IndexError nor a struct.error, whichever byte it is."""
    path, whole = tmp_path / "a.aedat4", aedat4_file([(0, aedat4_events(part(EVENTS, 0, 2)))], STREAMS[:1])
    refused = 0
    for index in (*range(12, 120), *range(len(whole) - 120, len(whole))):
        damaged = bytearray(whole)
        damaged[index] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read_aedat(path)
        except ValueError:
            refused += 1
    assert refused > 50


def test_a_size_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.aedat4").write_bytes(WHOLE)
    with pytest.raises(ValueError, match=r"`sensor_size` to be \(260, 346\) as given in .*, but got \(128, 128\)"):
        read_aedat(tmp_path / "a.aedat4", sensor_size=(128, 128))
    assert same(read_aedat(tmp_path / "a.aedat4", sensor_size=DAVIS346), EVENTS)
