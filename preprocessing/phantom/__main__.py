"""`python -m preprocessing.phantom`."""

import sys

from preprocessing.phantom.writing import main

if __name__ == "__main__":
    sys.exit(main())
