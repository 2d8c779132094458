"""Process that decodes compressed DICOM frames: `python -m preprocessing.dicom.decoder`.

The codecs are C++ libraries that crash on some damaged streams, or allocate whatever size a stream
states. In a process of its own with limited memory, this costs one case (see
`pixels.stored_frames`).

Standard input: for each file its name and its number of frames, each followed by a zero byte.
Standard output: for each frame its dtype and shape as a line of JSON, then its values in C order;
after a failure a last line with "error".
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

# Address space for libraries, one encoded and one decoded frame, and their copies.
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
                head = {"dtype": frame.dtype.str, "shape": frame.shape}
                out.write(json.dumps(head).encode() + b"\n")
                out.write(np.ascontiguousarray(frame).data)
        except (*DAMAGE, MemoryError) as error:
            out.write(json.dumps({"error": type(error).__name__}).encode() + b"\n")
            break
    out.flush()


if __name__ == "__main__":
    main()
