"""Removes metadata from image files, so that the pixels can be read even if the metadata is damaged."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
_PNG_USEFUL = {b"iCCP": "profile", b"eXIf": "orientation"}
_JPEG = b"\xff\xd8"
_ADOBE = 0xEE  # the segment that tells RGB from YCbCr, and CMYK from YCCK
_ADOBE_BYTES = 12
_JPEG_USEFUL = {(0xE1, b"Exif\0"): "orientation", (0xE2, b"ICC_P"): "profile"}
_TIFF = (b"II", b"MM")
_START_OF_SCAN = 0xDA


def without_metadata(data):
    """Yields versions of an image file with ever less metadata.

    Args:
      data: bytes of a file.

    Yields:
      bytes. For a PNG or JPEG: the file with colour profile and EXIF only, with EXIF only, and without both;
      a version that equals the one before it is left out. For a TIFF file: the file as it is, because its
      metadata cannot be cut out. Nothing for other formats.
    """
    if data.startswith(_TIFF):
        yield data
        return
    if data.startswith(_PNG):
        parts = list(_png_chunks(data))
    elif data.startswith(_JPEG):
        parts = list(_jpeg_segments(data))
    else:
        return
    previous = data
    for uses in (("pixels", "profile", "orientation"), ("pixels", "orientation"), ("pixels",)):
        kept = b"".join(part for part, use in parts if use in uses)
        if kept != previous:
            yield kept
        previous = kept


def _png_chunks(data):
    """Yields the bytes of each chunk, and its use: "pixels", "profile", "orientation" or None."""
    yield _PNG, "pixels"
    at = len(_PNG)
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        yield data[at : at + 12 + length], "pixels" if kind in _PNG_PIXELS else _PNG_USEFUL.get(kind)
        at += 12 + length


def _jpeg_segments(data):
    """Yields the bytes and the use of each segment. The last one reaches to the end of the file."""
    yield _JPEG, "pixels"
    at = len(_JPEG)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _START_OF_SCAN:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        use = "pixels"
        if 0xE0 <= kind <= 0xEF or kind == 0xFE:  # APP0 to APP15, comment
            use = _JPEG_USEFUL.get((kind, body[:5]))
            if kind == _ADOBE and len(body) >= _ADOBE_BYTES:
                use = "pixels"
        yield data[at : at + 2 + length], use
        at += 2 + max(length, 2)
    yield data[at:], "pixels"
