"""MONAI's AHNet as a benchmark worker; runs in the environment of `peers`, without TensorFlow."""

from __future__ import annotations

import time

import numpy as np
import torch
from monai.networks.nets import AHNet

from benchmarks.peers import peak_memory_mib, serve

STATE = {}


def load(threads, blocks, channels, classes, pvp_levels, upsampling, weights=None):
    """Builds the network; takes weights from an .npz of its state dict. Returns its parameters."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = AHNet(
        layers=tuple(blocks),
        spatial_dims=3,
        in_channels=channels,
        out_channels=classes,
        psp_block_num=pvp_levels,
        upsample_mode=upsampling,
    )
    if weights:
        arrays = np.load(weights)
        state = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        counts = {
            k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")
        }
        network.load_state_dict(state | counts)
    STATE["network"] = network
    return sum(p.numel() for p in network.parameters())


def run(image, output, training):
    """Applies the network to an .npy [batch, z, y, x, channel]; writes logits and state to an .npz."""
    x = torch.from_numpy(np.load(image)).permute(0, 4, 2, 3, 1)
    network = STATE["network"].train(training)
    with torch.no_grad():
        logits = network(x.contiguous()).permute(0, 4, 2, 3, 1).numpy()
    statistics = {
        key: value.numpy() for key, value in network.state_dict().items() if "running" in key
    }
    np.savez(output, logits=logits, **statistics)


def prepare(work, shape, precision, channels_last):
    """Sets up a forward pass or training step on noise of shape [batch, channel, y, x, z]."""
    network = STATE["network"].train(work == "training")
    image = torch.randn(shape)
    if channels_last:
        network.to(memory_format=torch.channels_last_3d)
        image = image.to(memory_format=torch.channels_last_3d)
    labels = torch.randint(0, 3, (shape[0], *shape[2:]))
    context = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    if work == "forward":

        def step():
            with torch.inference_mode(), context:
                return network(image).float()

    else:
        from monai.losses import FocalLoss

        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        loss_function = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0)

        def step():
            optimizer.zero_grad(set_to_none=True)
            with context:
                logits = network(image)
            loss = loss_function(logits.float(), labels[:, None])
            loss.backward()
            optimizer.step()
            return loss

    STATE["step"] = step


def prepare_prediction(volume, window, overlap, channels_last):
    """Sets up a whole volume's prediction from an .npy [z, y, x] to label values on the same grid."""
    from monai.inferers import sliding_window_inference

    network = STATE["network"].eval()
    if channels_last:
        network.to(memory_format=torch.channels_last_3d)
    z, y, x = window
    raw = np.load(volume)

    def probabilities(image):
        if channels_last:
            image = image.to(memory_format=torch.channels_last_3d)
        return torch.softmax(network(image), 1)

    def one_window():
        with torch.inference_mode():
            return probabilities(torch.zeros(1, 1, y, x, z))

    def whole():
        with torch.inference_mode():
            image = torch.from_numpy(raw.astype(np.float32)).permute(1, 2, 0)[None, None]
            return sliding_window_inference(
                image.clip(-200, 250) / 225 - 1 / 9,
                (y, x, z),
                1,
                probabilities,
                overlap=overlap,
                mode="gaussian",
            ).argmax(1)

    STATE["window"] = one_window
    STATE["step"] = whole


def once_window():
    """Predicts one window twice; returns as `once` does."""
    STATE["window"]()
    start = time.perf_counter()
    STATE["window"]()
    return time.perf_counter() - start, peak_memory_mib()


def once():
    """Runs the prepared work; returns its seconds and the peak memory of the process in MiB."""
    start = time.perf_counter()
    STATE["step"]()
    return time.perf_counter() - start, peak_memory_mib()


if __name__ == "__main__":
    serve(
        {
            "load": load,
            "run": run,
            "prepare": prepare,
            "prepare_prediction": prepare_prediction,
            "once_window": once_window,
            "once": once,
        }
    )
