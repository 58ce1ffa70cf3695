"""Size and integrity checks of JPEG, JPEG-LS and JPEG 2000 streams inside files.

They are needed because decoders silently fill in the missing parts of a damaged stream.
"""

from dataclasses import dataclass, field

import numpy as np

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.limits import check_pixels

JPEG_2000 = b"\xff\x4f\xff\x51"  # start of a codestream, followed by its size marker
JPEG = b"\xff\xd8"
SCAN, END = 0xDA, 0xD9  # markers, each preceded by a byte FF
RESTARTS = range(0xD0, 0xD8)
JPEG_LS = 0xF7
# Frame header markers of JPEG (without those of tables) and JPEG-LS.
FRAME_HEADERS = (*(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC)), JPEG_LS)
# Two different bit patterns to append: data that decode to the same picture with either are complete.
FILLINGS = (b"\xfe\x01" * 4, b"\x5a\xa5" * 4)
# Number of bytes to change at the end of the data, and the bits to flip in them: some of them must affect the picture.
TAIL, MASKS = 32, (0x55, 0xAA)


def check_codestream(content: bytes, config: DataConfig) -> tuple[int, int] | None:
    """Height and width of a JPEG, JPEG-LS or JPEG 2000 stream inside a file; None if it is none of these.

    Raises:
        DataError: if the stream's own header exceeds `max_pixels`; decoders trust that header, not the file's.
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
    """Raise DataError if a JPEG or JPEG-LS stream is truncated or damaged, as far as that can be detected without a
    checksum. Other streams are left to their decoders.

    Args:
        tables: the tables of an abbreviated stream, as stored in TIFF.
    """
    if not content.startswith(JPEG):
        return
    scans = _scans(content)
    if not scans.ended:
        raise DataError("is damaged or truncated: a JPEG stream in it lacks its end marker (FFD9); fetch it again")
    if scans.frame == JPEG_LS:
        _check_jpeg_ls(content)
    elif scans.runs:
        _check_jpeg(content, scans, tables)


@dataclass
class _Scans:
    """The parsed markers of a stream.

    Attributes:
        frame: the marker of the frame header.
        runs: start and end of each run of entropy-coded data; a run ends at a restart or at the end of a scan.
        restarts: number of the next restart marker.
        ended: whether the stream has an end marker.
    """

    frame: int = 0
    runs: list[tuple[int, int]] = field(default_factory=list)
    restarts: int = 0
    ended: bool = False


def _scans(content: bytes) -> _Scans:
    """Parse the markers of a stream (ISO/IEC 10918-1, B.1 and B.2; ISO/IEC 14495-1, C.1)."""
    found, at = _Scans(), 2
    while content[at : at + 1] == b"\xff" and at + 2 <= len(content):
        marker = content[at + 1]
        if marker == END:
            found.ended = True
            break
        if marker == 0xFF:  # a fill byte
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
        while content[at : at + 1] == b"\xff":  # a fill byte
            at += 1
        if at == len(content):
            break
        marker = content[at]
        at += 1
        if marker == 0 or (found.frame == JPEG_LS and marker < 0x80):  # an escaped FF in the data
            continue
        found.runs.append((start, end))
        if marker not in RESTARTS:
            return at - 2
        start = at
        found.restarts = marker - RESTARTS[0] + 1
    return len(content)


def _check_jpeg(content: bytes, scans: _Scans, tables: bytes | None) -> None:
    """Detect missing and surplus data. Appending data changes the picture only if data are missing. Changing the last
    bytes leaves the picture unchanged only if they are surplus; changing bytes in the middle must change it."""
    from imagecodecs import Jpeg8Error

    try:
        picture = _decode(content, tables)
    except Jpeg8Error as error:
        if "nsupported" in str(error):  # a kind of JPEG that libjpeg-turbo does not support
            return
        raise DataError(f"is damaged: a JPEG stream in it does not decode ({error}); fetch it again") from error
    for filling in FILLINGS:
        if not _is_same(picture, _add_data(content, scans, filling), tables):
            raise DataError(
                "is damaged or truncated: a JPEG stream in it has less data than its picture needs; fetch it again"
            )
    start, end = scans.runs[-1]
    end = len(content[:end].rstrip(b"\0\xff"))  # trailing zeros and FFs may be padding
    middle = (start + end - TAIL) // 2
    if (
        end - start >= 4 * TAIL
        and all(_is_same(picture, _flip_bits(content, end - TAIL, mask), tables) for mask in MASKS)
        and not any(_is_same(picture, _flip_bits(content, middle, mask), tables) for mask in MASKS)
    ):
        raise DataError("is damaged: a JPEG stream in it has data left after its picture; fetch it again")


def _decode(content: bytes, tables: bytes | None) -> np.ndarray:
    from imagecodecs import jpeg8_decode

    picture: np.ndarray = jpeg8_decode(content, tables=tables)
    return picture


def _is_same(picture: np.ndarray, content: bytes, tables: bytes | None) -> bool:
    from imagecodecs import Jpeg8Error

    try:
        return np.array_equal(picture, _decode(content, tables))
    except Jpeg8Error:
        return False


def _add_data(content: bytes, scans: _Scans, filling: bytes) -> bytes:
    """The stream with data appended to each run, and a further run after the last one."""
    parts, last = [], 0
    for _, end in scans.runs:
        parts += [content[last:end], filling]
        last = end
    return b"".join([*parts, bytes([0xFF, RESTARTS[scans.restarts % 8]]), filling, content[last:]])


def _flip_bits(content: bytes, start: int, mask: int) -> bytes:
    """The stream with bits flipped in TAIL bytes from `start` on."""
    data = bytearray(content)
    for at in range(start, start + TAIL):
        if 0xFF not in (data[at], data[at - 1], data[at] ^ mask):  # no marker is created or destroyed
            data[at] ^= mask
    return bytes(data)


def _check_jpeg_ls(content: bytes) -> None:
    """Raise DataError if CharLS finds the stream damaged; pylibjpeg's decoder would return pixels nonetheless."""
    from imagecodecs import JpeglsError, jpegls_decode

    try:
        jpegls_decode(content)
    except JpeglsError as error:
        if "Invalid JPEG-LS stream" in str(error):  # other errors are of kinds that CharLS does not support
            raise DataError("is damaged: a JPEG-LS stream in it does not decode; fetch it again") from error
