"""Each figure that the README quotes comes out of a script here: python -m benchmarks.NAME."""
