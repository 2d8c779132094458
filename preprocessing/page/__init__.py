"""Self-contained HTML pages about a data set or its scores: volumes, tables and charts."""
