"""`python -m serving.export`."""

import sys

from serving.export.exporter import main

if __name__ == "__main__":
    sys.exit(main())
