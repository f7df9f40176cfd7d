# The aggregation server. From the repository root:
#
#   docker build -f docker/aggregator.Dockerfile -t fedlora-aggregator .
#
# It holds fedlora/, aggregator_service/ and what they import; no transformers, no peft, no worker,
# no shell. docs/docker.md tells how a base is pinned by its digest, and what makes builds equal.
ARG PYTHON_IMAGE=python:3.11-slim

# Wheels to prefer over the index: --build-context wheels=FOLDER. Empty unless given.
FROM scratch AS wheels

FROM ${PYTHON_IMAGE} AS dependencies
# Where pip looks for torch beside its usual index. PyTorch's CPU builds by default; empty takes
# the usual index alone, whose build for Linux on x86-64 brings CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
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
RUN python requirements.py aggregator tracking < pyproject.toml > requirements.txt \
 && pip --python /venv/bin/python install --no-compile -c constraints.txt -r requirements.txt \
 && python settle.py /venv

FROM ${PYTHON_IMAGE} AS code
COPY docker/image/settle.py /build/
COPY fedlora /app/fedlora
COPY aggregator_service /app/aggregator_service
RUN python /build/settle.py /app

FROM ${PYTHON_IMAGE} AS system
WORKDIR /build
COPY docker/image/root_filesystem.py docker/image/sbom.py docker/image/settle.py fedlora/_version.py ./
COPY --from=dependencies /venv /venv
RUN python root_filesystem.py /root-filesystem /venv > system-files \
 && python sbom.py fedlora-aggregator "$(python -c 'print(__import__("_version").__version__)')" \
      /venv/lib/python3.11/site-packages < system-files > /root-filesystem/sbom.cdx.json \
 && install -d -m 700 -o 10001 -g 10001 \
      /root-filesystem/state /root-filesystem/runs /root-filesystem/identities \
      /root-filesystem/identities/authority /root-filesystem/identities/server \
      /root-filesystem/identities/operator \
 && python settle.py /root-filesystem

# docker build --target sbom --output FOLDER … writes the list of parts without the image.
FROM scratch AS sbom
COPY --from=system /root-filesystem/sbom.cdx.json /

FROM scratch
LABEL org.opencontainers.image.title="fedlora aggregator" \
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
    FEDLORA_SERVER__ADDRESS=0.0.0.0:8400 \
    FEDLORA_SERVER__HEALTH_ADDRESS=127.0.0.1:8402 \
    FEDLORA_SERVER__STATE_DIR=/state \
    FEDLORA_SERVER__EXPORT_DIR=/runs
WORKDIR /app
USER 10001:10001
EXPOSE 8400
VOLUME ["/state", "/runs"]
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --start-interval=1s --retries=3 \
  CMD ["python", "-m", "aggregator_service.healthcheck"]
ENTRYPOINT ["python", "-m", "aggregator_service"]
