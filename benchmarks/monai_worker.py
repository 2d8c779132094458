"""MONAI's AHNet as a benchmark worker; runs in the environment of `peers`, without TensorFlow."""

from __future__ import annotations

import numpy as np
import torch
from monai.networks.nets import AHNet

from benchmarks.onnx_worker import RUNTIMES
from benchmarks.peers import serve, timed

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


def export(shape, output):
    """Writes the network for images [batch, channel, y, x, z] as ONNX, and an answer to `output`.npz."""
    network, image = STATE["network"].eval(), torch.randn(shape)
    with torch.no_grad():
        torch.onnx.export(network, (image,), output, verbose=False)
        np.savez(f"{output}.npz", image=image.numpy(), logits=network(image).numpy())


def prepare(work, shape, precision, channels_last, compiled=False, device="cpu"):
    """Sets up a forward pass or training step on noise of shape [batch, channel, y, x, z]."""
    STATE["device"] = device
    if device == "cuda":
        # As TensorFlow: float32 in TF32 where the GPU has it, and kernels chosen by their time.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    network = STATE["network"].to(device).train(work == "training")
    image = torch.randn(shape).to(device)
    if channels_last:
        network.to(memory_format=torch.channels_last_3d)
        image = image.to(memory_format=torch.channels_last_3d)
    labels = torch.randint(0, 3, (shape[0], *shape[2:])).to(device)
    context = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
    call = torch.compile(network) if compiled else network
    if work == "forward":

        def step():
            with torch.inference_mode(), context:
                return call(image).float()

    else:
        from monai.losses import FocalLoss

        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        loss_function = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0)

        def step():
            optimizer.zero_grad(set_to_none=True)
            with context:
                logits = call(image)
            loss = loss_function(logits.float(), labels[:, None])
            loss.backward()
            optimizer.step()
            return loss

    STATE["step"] = step


def prepare_prediction(volume, window, overlap, precision, channels_last, compiled=False):
    """Sets up a whole volume's prediction from an .npy [z, y, x] to label values on the same grid."""
    network = STATE["network"].eval()
    if channels_last:
        network.to(memory_format=torch.channels_last_3d)
    call = torch.compile(network) if compiled else network
    context = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")

    def logits(image):
        if channels_last:
            image = image.to(memory_format=torch.channels_last_3d)
        with context:
            return call(image)

    _set_up_prediction(logits, volume, window, overlap)


def prepare_runtime_prediction(volume, window, overlap, **runtime):
    """Sets up a whole volume's prediction, as `prepare_prediction`, with a runtime of `onnx_worker`.

    `runtime` are its name as `runtime`, and the arguments of `RUNTIMES`.
    """
    torch.set_num_threads(runtime["threads"])
    network = RUNTIMES[runtime.pop("runtime")](**runtime)

    def logits(image):
        return torch.from_numpy(network(np.ascontiguousarray(image.numpy())))

    _set_up_prediction(logits, volume, window, overlap)


def _set_up_prediction(logits, volume, window, overlap):
    from monai.inferers import sliding_window_inference

    z, y, x = window
    raw = np.load(volume)

    def probabilities(image):
        return torch.softmax(logits(image).float(), 1)

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

    STATE["device"] = "cpu"
    STATE["window"] = one_window
    STATE["step"] = whole


def once_window():
    """Predicts one window twice; returns as `once` does."""
    STATE["window"]()
    return timed(STATE["window"])


def once():
    """Runs the prepared work; returns its seconds and the peak memory in MiB.

    That is the memory of this call on a GPU, or of the process so far.
    """
    if STATE["device"] == "cpu":
        return timed(STATE["step"])
    torch.cuda.reset_peak_memory_stats()
    return timed(_computed, lambda: torch.cuda.max_memory_allocated() / 2**20)


def _computed():
    STATE["step"]()
    torch.cuda.synchronize()


if __name__ == "__main__":
    serve(
        {
            "load": load,
            "run": run,
            "export": export,
            "prepare": prepare,
            "prepare_prediction": prepare_prediction,
            "prepare_runtime_prediction": prepare_runtime_prediction,
            "once_window": once_window,
            "once": once,
        }
    )
