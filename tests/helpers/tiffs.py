"""TIFFs in each layout of their bytes, written here so that the tests need no other library."""

import struct
import zlib

import numpy as np


def written(
    values: np.ndarray,
    photometric: int = 2,
    extra: tuple[int, ...] = (),
    *,
    order: str = "<",
    deflate: bool = False,
    predictor: int = 1,
    planar: bool = False,
    rows: int = 16,
    tile: int = 0,
    big: bool = False,
    orientation: int = 1,
) -> bytes:
    """A TIFF of values (H, W, S)."""
    height, width, bands = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    values = values.astype(values.dtype.newbyteorder(order))
    parts = []
    for plane in np.moveaxis(values, 2, 0)[..., None] if planar else [values]:
        if tile:
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            for top in range(0, height, tile):
                parts += [padded[top : top + tile, left : left + tile] for left in range(0, width, tile)]
        else:
            parts += [plane[top : top + rows] for top in range(0, height, rows)]
    if predictor == 2:
        parts = [np.concatenate([part[:, :1], np.diff(part, axis=1)], axis=1).astype(values.dtype) for part in parts]
    packed = [zlib.compress(part.tobytes()) if deflate else part.tobytes() for part in parts]
    start = 16 if big else 8
    offsets = [start + sum(map(len, packed[:number])) for number in range(len(packed))]
    tags = {
        256: (width,),
        257: (height,),
        258: (values.dtype.itemsize * 8,) * bands,
        259: (8 if deflate else 1,),
        262: (photometric,),
        274: (orientation,),
        277: (bands,),
        284: (2 if planar else 1,),
        317: (predictor,),
        339: (kind,) * bands,
    }
    sizes = tuple(map(len, packed))
    tags |= {322: (tile,), 323: (tile,), 324: offsets, 325: sizes} if tile else {273: offsets, 278: (rows,), 279: sizes}
    if extra:
        tags[338] = extra
    body = b"".join(packed)
    body += b"\0" * (len(body) % 2)
    place = start + len(body)
    head, room = (20, 8) if big else (12, 4)
    behind_at = place + (8 if big else 2) + head * len(tags) + room
    entries = behind = b""
    for tag, content in sorted(tags.items()):
        form, size = ("H", 3) if tag in (258, 338, 339) else ("I", 4)  # a single number is on the left of its room
        data = struct.pack(f"{order}{len(content)}{form}", *content)
        if len(data) > room:
            behind, data = behind + data, struct.pack(order + "IQ"[big], behind_at + len(behind))
        entries += struct.pack(f"{order}HH{'IQ'[big]}", tag, size, len(content)) + data.ljust(room, b"\0")
    mark = b"II" if order == "<" else b"MM"
    header = struct.pack(f"{order}HHHQ", 43, 8, 0, place) if big else struct.pack(f"{order}HI", 42, place)
    return mark + header + body + struct.pack(order + "HQ"[big], len(tags)) + entries + bytes(room) + behind
