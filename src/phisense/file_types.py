"""File type detection by the first bytes, regardless of the name: the one table of formats that
phisense can name.

A reader that cannot use a file looks its type up here, so that errors name it and the remedy in the
same words everywhere. Signatures come from the formats' specifications and from libmagic's tables
(`file --mime`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Number of leading bytes that `sniff` needs: tar has its signature at offset 257.
HEAD_BYTES = 512


@dataclass(frozen=True, slots=True)
class FileType:
    """`name` completes "which is ..."; `do` is the remedy; `group` is picture, sound, video,
    archive, table, weights or document.
    """

    name: str
    group: str
    do: str


_UNPACK = "Unpack it, and name what is inside"
_AS_PICTURE = "Save it as JPEG or PNG"
_AS_SOUND = "Save it as WAV, FLAC or MP3"
_DEVELOP = "Develop it into JPEG or PNG with the camera's program"
_NO_VIDEO = "Take single frames out of it as JPEG; phisense reads pictures and sounds"

GZIP = FileType("a gzip archive", "archive", "Unpack it (gunzip), and name what is inside")
ZIP = FileType("a zip archive", "archive", "Unpack it (unzip), and name what is inside")
TAR = FileType("a tar archive", "archive", "Unpack it (tar -xf), and name what is inside")
XLSX = FileType("an Excel workbook", "table", "Save it as CSV (UTF-8)")
PICKLE = FileType(
    "a Python pickle",
    "weights",
    "Save it as safetensors or JSON; a pickle can run code, so phisense opens none",
)
TORCH = FileType("a zip archive of PyTorch (a pickle)", "weights", PICKLE.do)
AVIF = FileType("an AVIF picture", "picture", _AS_PICTURE)
HEIC = FileType(
    "a HEIC picture",
    "picture",
    "Save it as JPEG (on an iPhone: Settings, Camera, Formats, Most Compatible)",
)
PDF = FileType(
    "a PDF", "document", "Save its pages as pictures (pdftoppm), or its text as JSON lines"
)
HTML = FileType(
    "a web page", "document", "Fetch the file itself: this is the page about it, or an error page"
)
XML = FileType("XML", "document", "Save it as JSON, or pictures as JPEG or PNG")
SVG = FileType("an SVG drawing", "picture", "Draw it into a PNG")
LFS = FileType("a Git LFS pointer", "document", "Fetch the file itself (git lfs pull)")

_FIXED: tuple[tuple[bytes, FileType], ...] = (
    (b"\x1f\x8b", GZIP),
    (
        b"BZh91AY&SY",
        FileType("a bzip2 archive", "archive", "Unpack it (bunzip2), and name what is inside"),
    ),
    (
        b"\xfd7zXZ\x00",
        FileType("an xz archive", "archive", "Unpack it (unxz), and name what is inside"),
    ),
    (
        b"\x28\xb5\x2f\xfd",
        FileType("a zstd archive", "archive", "Unpack it (unzstd), and name what is inside"),
    ),
    (
        b"\x04\x22\x4d\x18",
        FileType("an lz4 archive", "archive", "Unpack it (unlz4), and name what is inside"),
    ),
    (b"7z\xbc\xaf\x27\x1c", FileType("a 7z archive", "archive", _UNPACK)),
    (b"Rar!\x1a\x07", FileType("a RAR archive", "archive", _UNPACK)),
    (
        b"\x89HDF\r\n\x1a\n",
        FileType(
            "an HDF5 file", "table", "Write its rows as JSON lines, or of weights: as safetensors"
        ),
    ),
    (b"PAR1", FileType("a Parquet file", "table", "Name it *.parquet")),
    (b"ARROW1", FileType("an Arrow file", "table", "Name it *.arrow")),
    (b"\xff\xff\xff\xff", FileType("an Arrow stream", "table", "Name it *.arrow")),
    (b"ORC", FileType("an ORC file", "table", "Save it as Parquet")),
    (b"Obj\x01", FileType("an Avro file", "table", "Save it as Parquet or JSON lines")),
    (b"SQLite format 3\x00", FileType("an SQLite database", "table", "Export its table as CSV")),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        FileType("an old Office file", "table", "Save it as CSV (UTF-8)"),
    ),
    (
        b"\x93NUMPY",
        FileType("a NumPy array", "weights", "Save it as pictures, JSON lines or safetensors"),
    ),
    (
        b"MATLAB 5.0",
        FileType("a MATLAB file", "table", "Write its rows as JSON lines, its pictures as PNG"),
    ),
    (b"LZIP\x01", FileType("an lzip archive", "archive", _UNPACK)),
    (
        b"\x1f\x9d",
        FileType(
            "a compressed file (.Z)", "archive", "Unpack it (uncompress), and name what is inside"
        ),
    ),
    (
        b"GGUF",
        FileType("a GGUF file", "weights", "Make a language part of it: phisense import FILE"),
    ),
    (b"%PDF-", PDF),
    (b"version https://git-lfs", LFS),
    (b"{\\rtf", FileType("an RTF text", "document", "Save it as plain text")),
    (b"8BPS", FileType("a Photoshop picture", "picture", _AS_PICTURE)),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", FileType("a JPEG XL picture", "picture", _AS_PICTURE)),
    (b"\xff\x0a", FileType("a JPEG XL picture", "picture", _AS_PICTURE)),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", FileType("a JPEG 2000 picture", "picture", _AS_PICTURE)),
    (b"\xff\x4f\xff\x51", FileType("a JPEG 2000 picture", "picture", _AS_PICTURE)),
    (b"\x76\x2f\x31\x01", FileType("an OpenEXR picture", "picture", _AS_PICTURE)),
    (b"DDS ", FileType("a DDS texture", "picture", _AS_PICTURE)),
    (b"\x00\x00\x01\x00", FileType("a Windows icon", "picture", _AS_PICTURE)),
    (b"qoif", FileType("a QOI picture", "picture", _AS_PICTURE)),
    (b"%!PS", FileType("PostScript", "document", "Draw it into a PNG")),
    (b"gimp xcf", FileType("a GIMP picture", "picture", _AS_PICTURE)),
    (b"AT&TFORM", FileType("a DjVu document", "document", PDF.do)),
    (b"SIMPLE  =", FileType("a FITS picture", "picture", "Save it as PNG; 16 bits are read")),
    (b"#?RADIANCE", FileType("a Radiance picture", "picture", _AS_PICTURE)),
    (b"II\xbc\x01", FileType("a JPEG XR picture", "picture", _AS_PICTURE)),
    (b"FUJIFILMCCD-RAW", FileType("a camera's raw picture", "picture", _DEVELOP)),
    (b"IIU\x00", FileType("a camera's raw picture", "picture", _DEVELOP)),
    (b"IIRO", FileType("a camera's raw picture", "picture", _DEVELOP)),
    (b"II*\x00\x10\x00\x00\x00CR", FileType("a camera's raw picture", "picture", _DEVELOP)),
    (b"BM", FileType("a BMP picture", "picture", "Name it where pictures are asked for")),
    (
        b"\xff\xd8\xff",
        FileType("a JPEG picture", "picture", "Name it where pictures are asked for"),
    ),
    (
        b"\x89PNG\r\n\x1a\n",
        FileType("a PNG picture", "picture", "Name it where pictures are asked for"),
    ),
    (b"GIF8", FileType("a GIF picture", "picture", "Name it where pictures are asked for")),
    (b"II*\x00", FileType("a TIFF picture", "picture", "Name it where pictures are asked for")),
    (b"MM\x00*", FileType("a TIFF picture", "picture", "Name it where pictures are asked for")),
    (b"#!AMR", FileType("an AMR recording", "sound", _AS_SOUND)),
    (b"caff", FileType("a CAF recording", "sound", _AS_SOUND)),
    (b"fLaC", FileType("a FLAC sound", "sound", "Name it where sounds are asked for")),
    (b"OggS", FileType("an Ogg sound", "sound", "Name it where sounds are asked for")),
    (b"ID3", FileType("an MP3 sound", "sound", "Name it where sounds are asked for")),
    (b".snd", FileType("an AU sound", "sound", _AS_SOUND)),
    (b"MThd", FileType("a MIDI file", "sound", "Play it into a WAV; it holds notes and no sound")),
    (b"MAC ", FileType("a Monkey's Audio sound", "sound", _AS_SOUND)),
    (b"DSD ", FileType("a DSD sound", "sound", _AS_SOUND)),
    (b"TTA1", FileType("a TTA sound", "sound", _AS_SOUND)),
    (b"MPCK", FileType("a Musepack sound", "sound", _AS_SOUND)),
    (b"MP+", FileType("a Musepack sound", "sound", _AS_SOUND)),
    (b"Creative Voice File", FileType("a VOC sound", "sound", _AS_SOUND)),
    (b"NIST_1A", FileType("a SPHERE sound", "sound", _AS_SOUND)),
    (b"riff\x2e\x91\xcf\x11", FileType("a Wave64 sound", "sound", _AS_SOUND)),
    (b".RMF", FileType("a RealMedia file", "video", _AS_SOUND)),
    (b"\xff\xfb", FileType("an MP3 sound", "sound", "Name it where sounds are asked for")),
    (b"\xff\xf3", FileType("an MP3 sound", "sound", "Name it where sounds are asked for")),
    (b"\xff\xf1", FileType("an AAC sound", "sound", "Name it where sounds are asked for")),
    (b"\xff\xf9", FileType("an AAC sound", "sound", "Name it where sounds are asked for")),
    (b"wvpk", FileType("a WavPack sound", "sound", _AS_SOUND)),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", FileType("a Windows Media file", "video", _AS_SOUND)),
    (b"\x1aE\xdf\xa3", FileType("a WebM or Matroska file", "video", _NO_VIDEO)),
    (b"\x00\x00\x01\xba", FileType("an MPEG video", "video", _NO_VIDEO)),
    (b"FLV\x01", FileType("a Flash video", "video", _NO_VIDEO)),
)
_OFFICE = FileType("an Office document", "document", "Save it as CSV or text")
_FORM = {
    b"AIFF": FileType("an AIFF sound", "sound", "Name it where sounds are asked for"),
    b"AIFC": FileType("an AIFF sound", "sound", "Name it where sounds are asked for"),
    b"DJVU": FileType("a DjVu document", "document", PDF.do),
}
_DICOM = FileType("a DICOM picture", "picture", "Save it as PNG; 16 bits are read")
_NIFTI = FileType("a NIfTI volume", "picture", "Save its slices as PNG; 16 bits are read")
_NETPBM = FileType("a Netpbm picture", "picture", _AS_PICTURE)
_RAW = FileType("a camera's raw picture", "picture", _DEVELOP)
_TRANSPORT = FileType("an MPEG video", "video", _NO_VIDEO)
_NETPBM_HEAD = re.compile(rb"P(?:[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s|7\nWIDTH )")
_RIFF = {
    b"WAVE": FileType("a WAV sound", "sound", "Name it where sounds are asked for"),
    b"WEBP": FileType("a WebP picture", "picture", "Name it where pictures are asked for"),
    b"AVI ": FileType("an AVI video", "video", _NO_VIDEO),
}
_SAFETENSORS = FileType("a safetensors file", "weights", "Name it where a model is asked for")
_LMDB = FileType(
    "an LMDB database", "table", "Write its rows as JSON lines, and its pictures as files"
)
_ODS = FileType("an OpenDocument spreadsheet", "table", "Save it as CSV (UTF-8)")
_MP4_SOUND = FileType("an M4A sound", "sound", "Name it where sounds are asked for")
_MP4 = FileType("an MP4 or QuickTime video", "video", _NO_VIDEO)
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
#: A pickle of protocol 2 to 5; no text starts with these bytes.
_PICKLED = re.compile(rb"\x80[\x02-\x05]")
#: A signature made of letters may also start a text ("ORCHID", "caffeine"): bytes that do not occur
#: in text must follow.
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_TEXTS = (
    b"%PDF-",
    b"#?RADIANCE",
    b"SIMPLE  =",
    b"NIST_1A",
    b"gimp xcf",
    b"AT&TFORM",
    b"version https://git-lfs",
    b"{\\rtf",
    b"%!PS",
    b"#!AMR",
    b"GIF8",
    b"BZh91AY&SY",
)
_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def sniff(head: bytes) -> FileType | None:
    """The type of a file whose first `HEAD_BYTES` bytes (or all) are `head`; None for text and
    unknown types.
    """
    if head[:4] == b"PK\x03\x04" or head[:4] == b"PK\x05\x06":
        return _zipped(head)
    if _PICKLED.match(head):
        return PICKLE
    if (inner := _by_its_inside(head) or _inner(head)) is not None:
        return inner
    for signature, kind in _FIXED:
        if head.startswith(signature) and (_is_distinctive(signature) or _NO_TEXT.search(head)):
            return kind
    return _markup(head)


def _is_distinctive(signature: bytes) -> bool:
    """Whether no text starts with this signature: not only a few letters, nor two bytes that are
    letters in a legacy encoding.
    """
    return signature in _TEXTS or (len(signature) > 2 and not signature.isascii())


def _by_its_inside(head: bytes) -> FileType | None:
    """Formats whose signature follows a length or a header. Text may contain the same letters, so a
    byte that does not occur in text is required.
    """
    if not _NO_TEXT.search(head):
        return None
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[4:8] == b"ftyp" and not head[0]:
        return _boxed(head)
    if head[:4] == b"FORM" and head[8:12] in _FORM:
        return _FORM[head[8:12]]
    if head[257:262] == b"ustar":
        return TAR
    if head[16:20] == b"\xde\xc0\xef\xbe":
        return _LMDB
    return (
        _SAFETENSORS if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 2**32 else None
    )


def _inner(head: bytes) -> FileType | None:
    """Formats whose signature is not at offset 0."""
    if head[128:132] == b"DICM":
        return _DICOM
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return _NIFTI
    if (
        head[:1] == b"G"
        and head[188:189] == b"G"
        and head[376:377] == b"G"
        and _NO_TEXT.search(head)
    ):
        return _TRANSPORT
    if head[4:8] in (b"moov", b"mdat", b"wide", b"pnot") and _NO_TEXT.search(head[:4]):
        return _MP4  # QuickTime from before `ftyp` boxes
    return _NETPBM if _NETPBM_HEAD.match(head) else None


def _zipped(head: bytes) -> FileType:
    """The type of a zip, by the name of its first member, which Office, PyTorch and NumPy fix."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if name.startswith((b"[Content_Types].xml", b"xl/", b"_rels/", b"docProps/")):
        return _OFFICE if b"word/" in head or b"ppt/" in head else XLSX
    if name.endswith((b"/data.pkl", b"/version", b"/byteorder")):
        return TORCH
    if name == b"mimetype" and b"opendocument.spreadsheet" in head:
        return _ODS
    if name.endswith(b".npy"):
        return FileType(
            "an archive of NumPy arrays",
            "weights",
            "Save it as pictures, JSON lines or safetensors",
        )
    return ZIP


def _boxed(head: bytes) -> FileType:
    """The type of an ISO base media file, by its major and compatible brands."""
    brands = [
        head[8:12],
        *(
            head[at : at + 4]
            for at in range(16, min(len(head), int.from_bytes(head[:4], "big")), 4)
        ),
    ]
    if any(brand in (b"avif", b"avis") for brand in brands):
        return AVIF
    if any(brand in _HEIC_BRANDS for brand in brands):
        return HEIC
    if b"crx " in brands:
        return _RAW
    return _MP4_SOUND if head[8:11] == b"M4A" else _MP4


def _markup(head: bytes) -> FileType | None:
    text = head
    for mark in _BOMS:
        text = text.removeprefix(mark)
    text = text.replace(b"\x00", b"").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return HTML
    if text.startswith(b"<svg") or (
        text.startswith((b"<?xml", b"<!doctype svg")) and b"<svg" in text
    ):
        return SVG
    return XML if text.startswith(b"<?xml") else None
