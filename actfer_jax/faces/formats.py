"""Describes a file that does not open as an image, by its first bytes, and says what to do."""

import codecs

READ = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "BMP", "GIF", "TIFF", "PPM")
"""The formats that are read (HEIC is HEIF). Pillow or pillow-heif decodes them; for some others Pillow would start a
program or fetch parts."""

DEVELOP = "export it as JPEG or PNG with the program that develops your camera's pictures"

_CONVERT = "save it as JPEG or PNG"
_EXPORT = "export it as CSV, in UTF-8"
_FRAME = "save single frames of it as JPEG or PNG"
_FETCH = "get the file itself"
_UNPACK = "unpack it"

# What the file is, what to do, and how such files begin. The first match counts.
_FOREIGN: tuple[tuple[str, str, tuple[bytes, ...]], ...] = (
    ("a RAW picture", DEVELOP, (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"IIU\0", b"II\x1a\0\0\0HEAPCCDR", b"\0MRM")),
    ("a JPEG XL picture", _CONVERT, (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    ("a JPEG 2000 picture", _CONVERT, (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")),
    ("an OpenEXR picture", f"{_CONVERT}, with 8 bits a channel", (b"\x76\x2f\x31\x01",)),
    ("a Photoshop document", _CONVERT, (b"8BPS",)),
    ("a PDF document", f"take the picture out of it, and {_CONVERT}", (b"%PDF",)),
    ("a PostScript document", _CONVERT, (b"%!PS",)),
    ("a video", _FRAME, (b"\x1a\x45\xdf\xa3", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"FLV\x01")),
    ("a NumPy array", "save it with PIL.Image.fromarray(array).save(NAME)", (b"\x93NUMPY",)),
    ("a ZIP archive or an office document", _UNPACK, (b"PK\x03\x04", b"PK\x05\x06")),
    ("an archive", _UNPACK, (b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")),
    ("a Parquet file", "give it to the data set `table`", (b"PAR1",)),
    ("an old office document", _EXPORT, (b"\xd0\xcf\x11\xe0",)),
    ("a file of MATLAB", _EXPORT, (b"MATLAB 5.0",)),
    ("an HDF5 file", _EXPORT, (b"\x89HDF",)),
    ("a database of SQLite", _EXPORT, (b"SQLite format 3",)),
    ("a text in UTF-16", "save it as UTF-8", (b"\xff\xfe", b"\xfe\xff")),
    ("a pointer of Git LFS, not the file", "fetch the file with: git lfs pull", (b"version https://git-lfs",)),
    ("a pointer of git-annex, not the file", "fetch the file with: git annex get", (b"/annex/objects/",)),
)
# The same for files with a brand after "ftyp".
_BRANDS: tuple[tuple[str, str, tuple[bytes, ...]], ...] = (
    ("a RAW picture", DEVELOP, (b"crx",)),
    ("a video", _FRAME, (b"",)),
)
_PAGES = ("<!doctype html", "<html", "<head", "<!--")
_OWN: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("JPEG", (b"\xff\xd8\xff",)),
    ("PNG", (b"\x89PNG",)),
    ("GIF", (b"GIF8",)),
    ("BMP", (b"BM",)),
    ("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ("PPM", (b"P5", b"P6")),
)
_OWN_BRANDS: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("HEIC", (b"hei", b"hev", b"mif1", b"msf1")),
    ("AVIF", (b"avif", b"avis")),
)


def describe(data: bytes) -> str:
    """Says in a line what a file that does not open as an image is, and what to do."""
    for what, remedy, starts in _FOREIGN:
        if data.startswith(starts):
            return f"{what}; {remedy}"
    if data.startswith(b"ustar", 257):
        return f"an archive; {_UNPACK}"
    for name, brands in _OWN_BRANDS if data.startswith(b"ftyp", 4) else ():
        if data.startswith(brands, 8):
            return damaged(name)
    if data.startswith(b"ftyp", 4):
        return next(f"{what}; {remedy}" for what, remedy, brands in _BRANDS if data.startswith(brands, 8))
    if data.startswith(b"AVI ", 8):
        return f"a video; {_FRAME}"
    if data.startswith(b"DICM", 128):
        return f"a DICOM picture; {_CONVERT}, with 8 bits a channel"
    for name, starts in _OWN:
        if data.startswith(starts):
            return damaged(name)
    if data.startswith(b"WEBP", 8):
        return damaged("WebP")
    if not data.strip(b"\0"):
        return f"{'nothing but zeros' if data else 'an empty file'}; get the file anew"
    text = _text(data[:1024]).lower()
    if "<svg" in text:
        return f"an SVG drawing; {_CONVERT}"
    if text.startswith(_PAGES):
        return f"a web page that was saved under this name; {_FETCH}"
    if text.startswith("<?xml"):
        return f"an XML document, such as a server's message; {_FETCH}"
    if text:
        return f"a text, not a picture; {_FETCH}"
    return f"not a picture; give one of {', '.join(READ)}"


def describe_text(data: bytes) -> str:
    """Says in a line what a file is that should be a text with labels, and what to do; "" if it may be one."""
    text = _text(data[:1024])
    if text and not text.lower().startswith((*_PAGES, "<?xml", "version https://git-lfs", "/annex/objects/")):
        alone = len(data) < 1024 and "/" in text and len(text.split()) == 1 and "," not in text
        return f"the path of another file, as a link leaves it where links are not copied; {_FETCH}" if alone else ""
    for name, starts in _OWN:
        if data.startswith(starts):
            return f"a {name} picture, not a text; {_FETCH}"
    described = describe(data)
    # What is left is said of pictures, or is no picture either.
    unknown = described.startswith(("looks like", "not a picture"))
    return f"not a text in UTF-8; {_FETCH}, or save it as UTF-8" if unknown else described


def damaged(name: str, why: object = "") -> str:
    """Says in a line what is wrong with a file that begins like one of `READ`, and what to do."""
    detail = f" ({str(why).strip()})" if str(why) else ""
    article = "an" if name == "AVIF" else "a"
    return (
        f"looks like {article} {name} picture, but is damaged, cut short or of a rare kind{detail}; get or save it anew"
    )


def _text(start: bytes) -> str:
    """The first bytes as text; "" if they are not text."""
    try:
        # The last character may be cut.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start).lstrip()
    except UnicodeDecodeError:
        return ""
    return text if all(character.isprintable() or character.isspace() for character in text) else ""
