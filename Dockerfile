# The project with its locked environment: docker build -t ahnet-tf . && docker run ahnet-tf
FROM python:3.10-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home ahnet

WORKDIR /home/ahnet/ahnet-tf
RUN chown ahnet /home/ahnet/ahnet-tf
USER ahnet

# The environment before the code: a changed line of code does not install 2.6 GB again.
COPY --chown=ahnet environment.sh Makefile setup.py pyproject.toml requirements.lock README.md ./
RUN make env

COPY --chown=ahnet . .
ENV PATH=/home/ahnet/ahnet-tf/.venv/bin:$PATH
CMD ["make", "demo"]
