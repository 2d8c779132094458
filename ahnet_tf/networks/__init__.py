"""The networks: AH-Net, its 2D teacher MC-GCN and the paper's baselines."""

from ahnet_tf.networks.factory import build_network, named_weights

__all__ = ["build_network", "named_weights"]
