"""The colours of classes in every picture and page."""

from __future__ import annotations

# Okabe and Ito (2008): told apart with every kind of colour vision, and bright enough on black.
CLASS_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")


def class_colour(value: int) -> str:
    """Returns the colour of a label value from 1 on, as `#RRGGBB`."""
    return CLASS_COLOURS[(value - 1) % len(CLASS_COLOURS)]
