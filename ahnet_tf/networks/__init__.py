"""The networks: AH-Net, its 2D teacher MC-GCN and the paper's baselines; checkpoints and transfer."""

from ahnet_tf.networks.checkpoint import load_network, save_network
from ahnet_tf.networks.factory import build_network, named_weights
from ahnet_tf.networks.transfer import TransferReport, transfer_encoder

__all__ = [
    "TransferReport",
    "build_network",
    "load_network",
    "named_weights",
    "save_network",
    "transfer_encoder",
]
