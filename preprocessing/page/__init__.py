"""One self-contained HTML page about a data set: its volumes to look at, tables and charts."""

# Volumes of a page unless it is told otherwise.
VOLUMES = 20
