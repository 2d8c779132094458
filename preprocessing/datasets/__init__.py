"""Public data set layouts: finding cases, pairing images with annotations, reading both."""
