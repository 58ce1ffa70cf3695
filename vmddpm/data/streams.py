"""Compressed streams inside files, JPEG and its relatives: how large they are, and whether they are whole.

Decoders fill what a damaged stream lacks with what they like, and say nothing.
"""

from dataclasses import dataclass, field

import numpy as np

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.limits import check_pixels

JPEG_2000 = b"\xff\x4f\xff\x51"  # start of a codestream, and of its sizes
JPEG = b"\xff\xd8"
SCAN, END = 0xDA, 0xD9  # markers, which follow a byte FF
RESTARTS = range(0xD0, 0xD8)
JPEG_LS = 0xF7
# Markers of a frame header, of JPEG (not those of tables) and of JPEG-LS.
FRAME_HEADERS = (*(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC)), JPEG_LS)
# Bits that begin and go on differently: what decodes to the same with either put behind it needs no more data.
FILLINGS = (b"\xfe\x01" * 4, b"\x5a\xa5" * 4)
# Bytes at the end of the data, of which some must matter, and bits that are changed in them to see it.
TAIL, MASKS = 32, (0x55, 0xAA)


def check_codestream(content: bytes, config: DataConfig) -> tuple[int, int] | None:
    """Height and width of a JPEG, JPEG-LS or JPEG 2000 stream inside a file; None if it is none of them.

    Raises:
        DataError: if the stream is larger than `max_pixels` by its own header, whatever the file says: decoders believe
            the stream.
    """
    size = _jpeg_size(content) if content.startswith(JPEG) else _jpeg_2000_size(content)
    if size is not None:
        check_pixels(size, config)
    return size


def _jpeg_2000_size(content: bytes) -> tuple[int, int] | None:
    """Height and width (ISO/IEC 15444-1, A.5.1)."""
    start = content.find(JPEG_2000, 0, 1 << 16)
    fields = content[start + 8 : start + 24]
    if start < 0 or len(fields) < 16:
        return None
    right, bottom, left, top = (int.from_bytes(fields[n : n + 4], "big") for n in range(0, 16, 4))
    return max(bottom - top, 0), max(right - left, 0)


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Height and width (ISO/IEC 10918-1, B.2.2)."""
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker in FRAME_HEADERS:
            return int.from_bytes(content[at + 5 : at + 7], "big"), int.from_bytes(content[at + 7 : at + 9], "big")
        at += 1 if marker == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None


def check_whole(content: bytes, tables: bytes | None = None) -> None:
    """Raises DataError if a JPEG or JPEG-LS stream is cut short or damaged, as far as that can be known: it has no
    checksum. Other streams are left to their decoders.

    Args:
        tables: those of an abbreviated stream, as TIFF keeps them.
    """
    if not content.startswith(JPEG):
        return
    scans = _scans(content)
    if not scans.ended:
        raise DataError("is damaged or cut short: a JPEG stream in it lacks its end marker (FFD9); fetch it again")
    if scans.frame == JPEG_LS:
        _check_jpeg_ls(content)
    elif scans.runs:
        _check_jpeg(content, scans, tables)


@dataclass
class _Scans:
    """Attributes:
    frame: the marker of the frame header.
    runs: where each run of entropy-coded data starts and ends: at a restart or at the end of a scan.
    restarts: number of the restart marker that would come next.
    ended: whether the end marker comes last.
    """

    frame: int = 0
    runs: list[tuple[int, int]] = field(default_factory=list)
    restarts: int = 0
    ended: bool = False


def _scans(content: bytes) -> _Scans:
    """The parts of a stream (ISO/IEC 10918-1, B.1 and B.2; ISO/IEC 14495-1, C.1)."""
    found, at = _Scans(), 2
    while content[at : at + 1] == b"\xff" and at + 2 <= len(content):
        marker = content[at + 1]
        if marker == END:
            found.ended = True
            break
        if marker == 0xFF:  # a filling byte
            at += 1
            continue
        if marker in FRAME_HEADERS:
            found.frame = marker
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == SCAN:
            at = _end_of_scan(content, at, found)
    return found


def _end_of_scan(content: bytes, at: int, found: _Scans) -> int:
    start = at
    while (end := content.find(b"\xff", at)) >= 0:
        at = end + 1
        while content[at : at + 1] == b"\xff":  # a filling byte
            at += 1
        if at == len(content):
            break
        marker = content[at]
        at += 1
        if marker == 0 or (found.frame == JPEG_LS and marker < 0x80):  # FF of the data
            continue
        found.runs.append((start, end))
        if marker not in RESTARTS:
            return at - 2
        start = at
        found.restarts = marker - RESTARTS[0] + 1
    return len(content)


def _check_jpeg(content: bytes, scans: _Scans, tables: bytes | None) -> None:
    """Data that end early are found by what a decoder makes of others put behind them: a whole picture stays the same.
    Of data that are left where the picture is full, none matter, while those in the middle do."""
    from imagecodecs import Jpeg8Error

    try:
        picture = _decoded(content, tables)
    except Jpeg8Error as error:
        if "nsupported" in str(error):  # of a kind that libjpeg-turbo does not know
            return
        raise DataError(f"is damaged: a JPEG stream in it does not decode ({error}); fetch it again") from error
    for filling in FILLINGS:
        if not _is_same(picture, _filled(content, scans, filling), tables):
            raise DataError(
                "is damaged or cut short: a JPEG stream in it has less data than its picture needs; fetch it again"
            )
    start, end = scans.runs[-1]
    end = len(content[:end].rstrip(b"\0\xff"))  # what follows may be padding
    middle = (start + end - TAIL) // 2
    if (
        end - start >= 4 * TAIL
        and all(_is_same(picture, _changed(content, end - TAIL, mask), tables) for mask in MASKS)
        and not any(_is_same(picture, _changed(content, middle, mask), tables) for mask in MASKS)
    ):
        raise DataError("is damaged: a JPEG stream in it has data left where its picture is full; fetch it again")


def _decoded(content: bytes, tables: bytes | None) -> np.ndarray:
    from imagecodecs import jpeg8_decode

    picture: np.ndarray = jpeg8_decode(content, tables=tables)
    return picture


def _is_same(picture: np.ndarray, content: bytes, tables: bytes | None) -> bool:
    from imagecodecs import Jpeg8Error

    try:
        return np.array_equal(picture, _decoded(content, tables))
    except Jpeg8Error:
        return False


def _filled(content: bytes, scans: _Scans, filling: bytes) -> bytes:
    """With more data at the end of each run, and a restart and more data at the end of the last one."""
    parts, last = [], 0
    for _, end in scans.runs:
        parts += [content[last:end], filling]
        last = end
    return b"".join([*parts, bytes([0xFF, RESTARTS[scans.restarts % 8]]), filling, content[last:]])


def _changed(content: bytes, start: int, mask: int) -> bytes:
    """With other bits in TAIL bytes of the data."""
    data = bytearray(content)
    for at in range(start, start + TAIL):
        if 0xFF not in (data[at], data[at - 1], data[at] ^ mask):  # no marker comes or goes
            data[at] ^= mask
    return bytes(data)


def _check_jpeg_ls(content: bytes) -> None:
    """CharLS reports damage within a stream that pylibjpeg's decoder gives pixels of nonetheless."""
    from imagecodecs import JpeglsError, jpegls_decode

    try:
        jpegls_decode(content)
    except JpeglsError as error:
        if "Invalid JPEG-LS stream" in str(error):  # not of a kind that it does not know
            raise DataError("is damaged: a JPEG-LS stream in it does not decode; fetch it again") from error
