"""OpenVINO as a back end: TensorFlow's answers, without TensorFlow, from a cache, and with nothing sent."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import pytest

import ahnet_tf
from ahnet_tf import predict as command
from ahnet_tf.config import ModelConfig
from ahnet_tf.inference import openvino_runtime, predictor
from ahnet_tf.inference.predictor import open_predictor
from ahnet_tf.networks.factory import build_network
from preprocessing.errors import ModelError, SettingsError
from preprocessing.tasks import PRESETS

if importlib.util.find_spec("openvino") is None:
    pytest.skip("OpenVINO is not installed", allow_module_level=True)
# Not asked of OpenVINO, which is never loaded into the process of the tests.
HAS_BFLOAT16 = any(
    flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_bf16")
)
ROOT = Path(__file__).resolve().parents[3]
SMALL = ModelConfig(width=0.25, blocks=(1, 1, 1, 1), growth=8, dense_layers=1)
TASK = attrs.evolve(PRESETS["ct_liver"], patch_shape_zyx=(8, 64, 64))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """The cache of these tests, instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.delenv("AHNET_CACHE")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "ahnet"


@pytest.fixture(scope="module")
def windows():
    """HU of a smooth body in noise, int16, two windows."""
    grid = np.linspace(-3, 3, 64)
    body = 200 * np.cos(grid[:, None]) * np.cos(grid) + np.linspace(-50, 50, 8)[:, None, None]
    noise = np.random.default_rng(1).normal(0, 30, (2, 8, 64, 64))
    return (body + noise)[..., None].astype(np.int16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, windows):
    """A small AH-Net whose norms have the statistics of the windows, as a trained one's have."""
    network = build_network(SMALL, seed=3)
    for layer in network._flatten_layers():
        if hasattr(layer, "momentum"):
            layer.momentum = 0.0
    network(windows.astype(np.float32), training=True)
    folder = tmp_path_factory.mktemp("checkpoint")
    ahnet_tf.save(network, folder, TASK)
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory, checkpoint):
    from ahnet_tf.inference.predictor import load_checkpoint
    from serving.export.exporter import export_model

    output = tmp_path_factory.mktemp("export") / "1"
    return export_model(*load_checkpoint(checkpoint), output)


@pytest.fixture(scope="module")
def exact(export, windows):
    """TensorFlow's probabilities of the windows."""
    return open_predictor(export).predict(windows)


@pytest.fixture(scope="module")
def case(tmp_path_factory, windows):
    path = tmp_path_factory.mktemp("case") / "case.nii.gz"
    nib.save(nib.Nifti1Image(windows[0, ..., 0].T, np.diag([1.0, 1.0, 3.0, 1.0])), path)
    return path


@pytest.fixture(scope="module")
def tensorflow_run(tmp_path_factory, export, case):
    """The command's output with TensorFlow."""
    output = tmp_path_factory.mktemp("run") / "out"
    words = [str(word) for word in ("--model", export, case, output)]
    options = ["--allow", "unfit_image", "--backend", "tensorflow"]
    assert command.main(words + options) == 0
    return output


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["export", "checkpoint"])
def test_float32_answers_are_those_of_tensorflow(request, kind, windows):
    folder = request.getfixturevalue(kind)
    here, there = (open_predictor(folder, backend=name) for name in ("openvino", "tensorflow"))
    assert (here.backend, there.backend) == ("openvino", "tensorflow")
    assert here.settings == there.settings
    for some in (windows, windows[1:, :5, :33, :47].astype(np.float64)):
        found = here.predict(some)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, there.predict(some), atol=1e-4)


def test_network_with_one_output_gives_both_classes(tmp_path):
    task = attrs.evolve(
        TASK, class_names=("background", "liver"), resampling="keep", patch_shape_zyx=(4, 32, 32)
    )
    one = {"classes": 1, "activation": "sigmoid", "width": 0.125, "unet_levels": 2}
    ahnet_tf.save(ahnet_tf.build("unet2d", task=task, **one), tmp_path, task)
    image = np.random.default_rng(0).normal(0, 200, (1, 4, 32, 32, 1)).astype(np.float32)
    found, expected = (
        open_predictor(tmp_path, backend=name).predict(image) for name in ("openvino", "tensorflow")
    )
    assert found.shape == (1, 4, 32, 32, 2)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.skipif(not HAS_BFLOAT16, reason="the processor lacks bfloat16")
def test_bfloat16_gives_nearly_the_same_probabilities(export, windows, exact):
    found = open_predictor(export, backend="openvino", precision="bfloat16")
    assert found.settings.precision == "bfloat16"
    difference = np.abs(found.predict(windows) - exact)
    assert 1e-6 < difference.mean() < 0.01


def run(code, *words, **environment):
    """Runs Python in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | environment,
    )


def children():
    """The processes that this one has started, and that have not ended."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(number) for task in tasks for number in task.read_text().split()}


def test_libraries_are_never_in_one_process(export, windows):
    before = children()
    network = open_predictor(export, backend="openvino")
    network.predict(windows)
    assert "tensorflow" in sys.modules
    assert "openvino" not in sys.modules
    (process,) = children() - before
    mapped = Path(f"/proc/{process}/maps").read_text()
    assert "libopenvino" in mapped
    assert "libtensorflow" not in mapped
    del network
    assert children() == before


def test_windows_of_one_size_compile_once(export):
    code = """if True:
        import os, sys, numpy as np
        from pathlib import Path
        from ahnet_tf.inference import openvino_process as process
        sizes = []
        openvino = process._import_openvino()
        compile_model = openvino.Core.compile_model
        def counted(self, model, *rest):
            sizes.append(tuple(model.inputs[0].shape))
            return compile_model(self, model, *rest)
        openvino.Core.compile_model = counted
        memory = os.memfd_create("windows")
        os.truncate(memory, 1 << 20)
        job = process.Job("here", Path(sys.argv[1]), None, "float32", (8, 64, 64, 1), 3)
        network = process._CompiledNetwork(job, memory)
        for depth in (8, 8, 4, 8, 4):
            assert network.compute((depth, 64, 64, 1)) is None
        print(sizes)
    """
    found = run(code, export)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "[(1, 8, 64, 64, 1), (1, 4, 64, 64, 1)]"


def test_pairs_of_slices_are_compared_without_a_transposition(export):
    """Pools of an even number of slices before and after; equal answers are tested above."""
    code = """if True:
        import sys
        from ahnet_tf.inference import openvino_process as process
        model = process._import_openvino().Core().read_model(sys.argv[1])
        model.reshape([1, 8, 64, 64, 1])
        def pools():
            found = [node for node in model.get_ordered_ops() if node.get_type_name() == "MaxPool"]
            found = [each for each in found if list(each.get_attributes()["kernel"]) == [2, 1]]
            return sum(
                user.get_node().get_type_name() == "Transpose"
                for each in found if each.get_input_shape(0)[2] % 2 == 0
                for user in each.output(0).get_target_inputs()
            )
        before = pools()
        process._pool_slices_as_maxima(model)
        print(before, pools())
    """
    found = run(code, export)
    assert found.returncode == 0, found.stderr
    before, after = map(int, found.stdout.split())
    assert before > 0
    assert after == 0


def test_after_its_process_was_killed_it_starts_again(export, windows):
    before = children()
    network = open_predictor(export, backend="openvino")
    expected = network.predict(windows)
    (process,) = children() - before
    os.kill(process, signal.SIGKILL)
    message = "expected an answer of OpenVINO's process, found its end by SIGKILL. SIGKILL usually"
    with pytest.raises(ModelError, match=message):
        network.predict(windows)
    np.testing.assert_array_equal(network.predict(windows), expected)


def test_an_interruption_leaves_no_answer_behind(export, windows):
    network = open_predictor(export, backend="openvino")
    expected = network.predict(windows)

    def interrupt(*_):
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            # Of a new size, for which the network has to be compiled.
            network.predict(np.zeros((1, 24, 160, 160, 1), np.float32))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    np.testing.assert_array_equal(network.predict(windows), expected)


def test_its_process_ends_with_a_killed_one(export):
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from ahnet_tf.inference.predictor import open_predictor\n"
        "network = open_predictor(sys.argv[1], backend='openvino')\n"
        "print(Path('/proc/self/task', str(os.getpid()), 'children').read_text(), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    found = run(code, export)
    assert (found.returncode, found.stdout.strip().isdigit()) == (-signal.SIGKILL, True)
    process = Path("/proc", found.stdout.strip(), "exe")
    deadline = time.monotonic() + 30
    while process.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not process.exists()


# Python runs this file at the start of each process: it refuses connections, and tells in the end what
# was loaded. Sockets that are only opened are not counted: urllib3 tries whether there is IPv6.
PROBE = """
import atexit, json, os, sys
folder = os.environ["AHNET_TEST_PROBE"]
def watch(event, _):
    if event.startswith(("socket.connect", "socket.send", "socket.get")):
        open(f"{folder}/{os.getpid()}.{event}", "w").close()
        raise AssertionError("a connection was tried")
def tell():
    names = [name for name in ("tensorflow", "openvino") if name in sys.modules]
    names += [n for n in sys.modules if n.startswith("openvino_telemetry.")]
    with open(f"{folder}/{os.getpid()}.json", "w") as file:
        json.dump(names, file)
sys.addaudithook(watch)
atexit.register(tell)
"""


@pytest.mark.parametrize("kind", ["export", "checkpoint"])
def test_command_without_tensorflow_sends_nothing(request, kind, case, tensorflow_run, tmp_path):
    """From an export at once, from a checkpoint once it is in the cache; with the same labels."""
    folder = request.getfixturevalue(kind)
    if kind == "checkpoint":
        open_predictor(folder, backend="openvino")
    words = ("--model", folder, case, "--allow", "unfit_image")
    home, probe = tmp_path / "home", tmp_path / "probe"
    probe.mkdir()
    (probe / "sitecustomize.py").write_text(PROBE)
    paths = os.pathsep.join([str(probe), os.environ.get("PYTHONPATH", "")])
    environment = {"HOME": str(home), "PYTHONPATH": paths, "AHNET_TEST_PROBE": str(probe)}
    code = "import sys; from ahnet_tf.predict import main; sys.exit(main(sys.argv[1:]))"
    found = run(code, *words, tmp_path / "out", "--backend", "openvino", **environment)
    assert found.returncode == 0, found.stderr
    loaded = sorted(json.loads(path.read_text()) for path in probe.glob("*.json"))
    assert loaded == [[], ["openvino"]]
    assert not list(probe.glob("*.socket.*"))
    assert not (home / "intel").exists()
    outputs = (tmp_path / "out", tensorflow_run)
    labels = [np.asarray(nib.load(output / "case.nii.gz").dataobj) for output in outputs]
    assert len(np.unique(labels[0])) > 1
    assert np.mean(labels[0] != labels[1]) < 1e-3
    records = [json.loads((output / "prediction.json").read_text()) for output in outputs]
    assert [record.get("backend") for record in records] == ["openvino", None]


def test_interface_without_tensorflow(export, windows):
    code = (
        "import sys, numpy as np, ahnet_tf\n"
        "segmenter = ahnet_tf.load(sys.argv[1], backend='openvino')\n"
        "volume = np.random.default_rng(0).normal(0, 200, (64, 64, 8))\n"
        "result = segmenter.segment(volume, spacing_mm=(1, 1, 3), allow=['unfit_image'])\n"
        "print(result.labels.shape, 'tensorflow' in sys.modules)\n"
    )
    found = run(code, export)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "(64, 64, 8) False"


@pytest.mark.slow
def test_network_comes_from_the_cache(checkpoint, windows, tmp_path, monkeypatch):
    monkeypatch.setenv("AHNET_CACHE", str(tmp_path))
    expected = open_predictor(checkpoint, backend="openvino").predict(windows)
    (network,) = tmp_path.glob("*/network.xml")
    (compiled,) = tmp_path.glob("*/f32-8x64x64x1-*")
    written = compiled.stat().st_mtime_ns

    def convert(*_):
        raise AssertionError("converted again")

    monkeypatch.setattr(predictor, "_write_graph", convert)
    found = open_predictor(checkpoint, backend="openvino").predict(windows)
    np.testing.assert_array_equal(found, expected)
    assert compiled.stat().st_mtime_ns == written
    assert len(list(tmp_path.glob("*/*"))) == 3  # Two files of the network.

    whole = compiled.read_bytes()
    for damaged in (whole[:1000], whole[:-1] + bytes([whole[-1] ^ 1])):
        compiled.write_bytes(damaged)
        found = open_predictor(checkpoint, backend="openvino").predict(windows)
        np.testing.assert_array_equal(found, expected)
        assert compiled.read_bytes() != damaged
    network.write_text("damaged")
    # What was compiled is enough for its own size.
    opened = open_predictor(checkpoint, backend="openvino")
    np.testing.assert_array_equal(opened.predict(windows), expected)
    with pytest.raises(ModelError, match=r"network.xml: expected a whole file"):
        opened.predict(windows[:, :4])
    np.testing.assert_array_equal(opened.predict(windows), expected)
    compiled.unlink()
    with pytest.raises(
        ModelError, match=r"network.xml: expected a whole file, .* Remove its folder"
    ):
        open_predictor(checkpoint, backend="openvino")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["a file", "none"])
def test_without_a_cache(export, windows, exact, tmp_path, monkeypatch, place):
    """The cache's folder can't be made, or not be written (root may write everywhere)."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    if place == "none":
        monkeypatch.setattr(os, "access", lambda *_: False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert openvino_runtime.cache_folder() is None
    found = open_predictor(export, backend="openvino").predict(windows[:1])
    np.testing.assert_allclose(found, exact[:1], atol=1e-4)


@pytest.mark.slow
def test_auto_is_openvino_without_a_gpu(export, monkeypatch):
    monkeypatch.setattr(predictor, "is_preferred", lambda: True)
    assert open_predictor(export, backend="auto").backend == "openvino"
    monkeypatch.setattr(predictor, "is_preferred", lambda: False)
    assert open_predictor(export, backend="auto").backend == "tensorflow"


def test_gpu_is_found_without_tensorflow(monkeypatch, tmp_path):
    assert openvino_runtime.is_preferred()
    monkeypatch.setattr(openvino_runtime, "Path", lambda _: tmp_path)
    (tmp_path / "nvidiactl").write_text("")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert openvino_runtime.is_preferred()
    (tmp_path / "nvidia0").write_text("")
    assert not openvino_runtime.is_preferred()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert not openvino_runtime.is_preferred()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert openvino_runtime.is_preferred()


def test_auto_falls_back_where_openvino_cannot_read(threshold_model, monkeypatch):
    def refuse(*_):
        raise ModelError("here", "a network that OpenVINO can read", "another")

    monkeypatch.setattr(predictor, "_open_with_openvino", refuse)
    monkeypatch.setattr(predictor, "is_preferred", lambda: True)
    assert open_predictor(threshold_model, backend="auto").backend == "tensorflow"


def test_not_installed_is_one_line(export, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(openvino_runtime, "_is_installed", lambda: False)
    words = ["--model", str(export), str(tmp_path), str(tmp_path.parent / "out")]
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    assert command.main([*words, "--backend", "openvino"]) == 1
    line = "error: openvino: expected the package openvino, found none. In a checkout, "
    assert capsys.readouterr().err == line + "pip install '.[openvino]' adds it.\n"


@pytest.mark.skipif(HAS_BFLOAT16, reason="the processor has bfloat16")
def test_processor_without_bfloat16_is_one_line(export, tmp_path, capsys):
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    words = ["--model", str(export), str(tmp_path / "a.nii.gz"), str(tmp_path / "out")]
    words += ["--allow", "unfit_image", "--backend", "openvino", "--precision", "bfloat16"]
    assert command.main(words) == 1
    line = "error: precision: expected float32 on this processor, found bfloat16. AVX-512 BF16 or "
    assert capsys.readouterr().err == line + "AMX is needed.\n"


@pytest.mark.slow
def test_impossible_combinations(export, tmp_path):
    with pytest.raises(SettingsError, match="expected one of auto, tensorflow, openvino"):
        open_predictor(export, backend="onnx")
    with pytest.raises(SettingsError, match="expected one of float32, bfloat16, found float16"):
        open_predictor(export, precision="float16")
    with pytest.raises(SettingsError, match="float32, the network's own, found bfloat16"):
        open_predictor(export, precision="bfloat16")
    with pytest.raises(SettingsError, match="backend: expected none for a server"):
        open_predictor("localhost:1", backend="openvino")
    with pytest.raises(SettingsError, match="TensorFlow in float32 for a Keras model"):
        ahnet_tf.load(build_network(SMALL), task=TASK, backend="openvino")
    damaged = tmp_path / "1"
    damaged.mkdir()
    (damaged / "saved_model.pb").write_bytes(b"no graph")
    (damaged / "assets.extra").mkdir()
    settings = (export / "assets.extra" / "ahnet.json").read_text()
    (damaged / "assets.extra" / "ahnet.json").write_text(settings)
    with pytest.raises(ModelError, match="expected a network that OpenVINO can read"):
        open_predictor(damaged, backend="openvino")
    changed = json.loads(settings) | {"precision": "bfloat16"}
    (damaged / "assets.extra" / "ahnet.json").write_text(json.dumps(changed))
    with pytest.raises(ModelError, match="an export in float32, which OpenVINO can read"):
        open_predictor(damaged, backend="openvino")


@pytest.mark.slow
def test_labels_of_a_real_ct(real_data, tmp_path):
    """A network that has learned this CT's liver labels it as with TensorFlow, in both precisions."""
    import keras

    path = real_data / "totalsegmentator_example" / "ct_3mm.nii.gz"
    image = np.asarray(nib.load(path).dataobj).T
    liver = np.asarray(nib.load(path.with_name("liver_auto.nii.gz")).dataobj).T > 0
    task = attrs.evolve(
        PRESETS["ct_liver"],
        class_names=("background", "liver"),
        patch_shape_zyx=(16, 64, 64),
        resampling="keep",
    )
    network = ahnet_tf.build("ahnet", task=task, width=0.25, blocks=(1, 1, 1, 1), dense_layers=1)
    random = np.random.default_rng(0)
    sizes = np.array(task.patch_shape_zyx)
    # Half of the patches around a voxel of the liver.
    inside = np.argwhere(liver)
    centres = np.concatenate([random.choice(inside, 80), random.integers(0, image.shape, (80, 3))])
    random.shuffle(centres)
    places = [
        tuple(slice(a, a + n) for a, n in zip(corner, sizes, strict=True))
        for corner in np.clip(centres - sizes // 2, 0, np.array(image.shape) - sizes)
    ]
    patches = np.stack([image[place] for place in places]).astype(np.float32)[..., None]
    targets = np.stack([liver[place] for place in places]).astype(np.uint8)
    network.compile(keras.optimizers.Adam(3e-3), ahnet_tf.loss(task, "cross_entropy"))
    network.fit(patches, targets, batch_size=2, epochs=2, verbose=0)
    ahnet_tf.save(network, tmp_path, task)
    labels = {
        kind: ahnet_tf.load(tmp_path, backend=kind[0], precision=kind[1]).segment(path).labels
        for kind in (("tensorflow", None), ("openvino", "float32"), ("openvino", "bfloat16"))
        if HAS_BFLOAT16 or kind[1] != "bfloat16"
    }
    expected = labels["tensorflow", None]
    found = expected.T == 1
    assert 2 * (found & liver).sum() / (found.sum() + liver.sum()) > 0.5
    for kind, given in labels.items():
        different = np.mean(given != expected)
        print(kind, different)
        assert different < 1e-3, kind
