"""By which endings pictures are known in folders."""

# Of the formats in images.py, as Pillow names them; without Truevision's rarer ones, which other programs use for
# drawings.
ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga"),
)
HEIC_ENDINGS = (".heic", ".heics", ".heif", ".heifs", ".hif")  # of pictures that need a decoder of their own
