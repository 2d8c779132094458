"""What pydicom raises where a file is not what it says; its messages quote headers, and stay inside."""

from __future__ import annotations

import struct

from pydicom.errors import BytesLengthException, InvalidDicomError

DAMAGE = (
    *(InvalidDicomError, BytesLengthException, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, LookupError),
    *(NotImplementedError, OverflowError, RuntimeError, EOFError, OSError, struct.error),
)
