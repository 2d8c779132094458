"""The networks: AH-Net, MC-GCN (the 2D network whose encoder is transferred) and the paper's baselines."""

from ahnet_tf.networks.factory import build_network, named_weights

__all__ = ["build_network", "named_weights"]
