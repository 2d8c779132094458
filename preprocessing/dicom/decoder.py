"""The process that decodes compressed DICOM frames: `python -m preprocessing.dicom.decoder`.

The codecs are C++ that ends its process on some damaged streams, or allocates what a stream promises.
Here that costs one case, not a worker: memory is limited and `preprocessing.dicom.pixels` sees the end.

Standard input: a file's name and its number of frames, each ended by a zero byte, for each file.
Standard output: for each frame a line of its dtype and shape as JSON, then its values, C order; after
a failure a last line with "error".
"""

from __future__ import annotations

import json
import os
import resource
import sys

import numpy as np
from pydicom import config
from pydicom.pixels import iter_pixels

from preprocessing.dicom.deidentify import DAMAGE

# Address space: libraries, one encoded and one decoded frame, and their copies.
MEMORY_BYTES = 4 * 2**30


def main() -> None:
    """Decodes the files named on standard input."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    config.settings.reading_validation_mode = config.IGNORE
    out = sys.stdout.buffer
    words = sys.stdin.buffer.read().split(b"\0")
    for name, count in zip(words[::2], words[1::2], strict=False):
        try:
            # Without indices pydicom fails on streams whose sign it has to correct.
            for frame in iter_pixels(os.fsdecode(name), raw=True, indices=range(int(count))):
                frame = np.ascontiguousarray(frame)
                head = {"dtype": frame.dtype.str, "shape": frame.shape}
                out.write(json.dumps(head).encode() + b"\n")
                out.write(frame)
        except (*DAMAGE, OSError, MemoryError) as error:
            out.write(json.dumps({"error": type(error).__name__}).encode() + b"\n")
            break
    out.flush()


if __name__ == "__main__":
    main()
