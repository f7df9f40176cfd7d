# The aggregation server. From the repository root:
#
#   docker build -f docker/aggregator.Dockerfile -t fedlora-aggregator .
#
# It holds fedlora/, aggregator_service/ and what they import; no transformers, no peft, no worker.

# Wheels to prefer over the index: --build-context wheels=FOLDER. Empty unless given.
FROM scratch AS wheels

FROM python:3.11-slim AS dependencies
# Where pip looks for torch beside its usual index. PyTorch's CPU builds by default; empty takes
# the usual index alone, whose build for Linux on x86-64 brings CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY constraints.txt ./
# torch first and alone: no other package is ever taken from its index.
RUN --mount=type=bind,from=wheels,target=/wheels \
    python -m venv --without-pip /venv \
 && pip --python /venv/bin/python install -c constraints.txt --find-links /wheels \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml docker/requirements.py ./
RUN python requirements.py aggregator < pyproject.toml > requirements.txt \
 && pip --python /venv/bin/python install -c constraints.txt -r requirements.txt

FROM python:3.11-slim
LABEL org.opencontainers.image.title="fedlora aggregator" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 fedlora \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fedlora \
 && install -d -o 10001 -g 10001 /state /runs
COPY --from=dependencies /venv /venv
COPY fedlora /app/fedlora
COPY aggregator_service /app/aggregator_service
# The root file system is read-only when it runs: what is not compiled now is compiled at each start.
RUN /venv/bin/python -m compileall -q /app
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    FEDLORA_SERVER__ADDRESS=0.0.0.0:8400 \
    FEDLORA_SERVER__STATE_DIR=/state \
    FEDLORA_SERVER__EXPORT_DIR=/runs
WORKDIR /app
USER 10001:10001
EXPOSE 8400
VOLUME ["/state", "/runs"]
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 \
  CMD ["python", "-m", "aggregator_service.healthcheck"]
ENTRYPOINT ["python", "-m", "aggregator_service"]
