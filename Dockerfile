# The project with its locked environment, for a demonstration and for every pod of a cluster:
# docker build -t ahnet-tf . && docker run ahnet-tf
# For NVIDIA GPUs: docker build -t ahnet-tf --build-arg GPU=1 . && docker run --gpus all ahnet-tf
# With TensorFlow 2.15: docker build -t ahnet-tf --build-arg PYTHON=3.10 --build-arg DEBIAN=bookworm .
ARG PYTHON=3.12
ARG DEBIAN=trixie

# A package of the lock may be compiled on installation: this stage has a compiler, the image has none.
FROM python:${PYTHON}-${DEBIAN} AS environment
WORKDIR /home/ahnet/ahnet-tf
# With bytecode, or each pod would compile TensorFlow and TFX again.
ENV UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 UV_COMPILE_BYTECODE=1
COPY environment.sh setup.py pyproject.toml requirements*.lock README.md ./
ARG GPU=0
RUN GPU="$GPU" ./environment.sh

FROM python:${PYTHON}-slim-${DEBIAN}
# A number, because Kubernetes can't tell whether a name is root's.
RUN useradd --create-home --uid 1000 ahnet
WORKDIR /home/ahnet/ahnet-tf
RUN chown 1000 /home/ahnet/ahnet-tf
USER 1000
# The environment before the code, so that a change of the code does not install it again.
COPY --from=environment --chown=1000 /home/ahnet/ahnet-tf/.venv .venv
COPY --chown=1000 . .
ENV PATH=/home/ahnet/ahnet-tf/.venv/bin:$PATH
CMD ["python", "-m", "pipeline.demo", "--output", "demo"]
