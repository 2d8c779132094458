"""The 3D Anisotropic Hybrid Network in Keras: networks, losses, training, prediction, scoring."""
