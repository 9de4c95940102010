# HelixFlow for CPUs. Dockerfile.gpu has the same stages with other arguments; a test compares them.
#   docker build -t helixflow .
#   docker run -p 8000:8000 -e HELIXFLOW_API_KEY -v helixflow:/cache --read-only --tmpfs /tmp helixflow
ARG BASE_IMAGE=debian:bookworm-slim
ARG BASE_DIGEST=sha256:96e378d7e6531ac9a15ad505478fcc2e69f371b10f5cdf87857c4b8188404716
ARG RUNTIME_PACKAGES=""
# PyPI's torch brings gigabytes of CUDA libraries; this index has builds without.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=bnb,tracing

FROM ${BASE_IMAGE}@${BASE_DIGEST} AS base
ARG RUNTIME_PACKAGES
# Versions are those of the base image's distribution, which gets security fixes with each build.
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 ${RUNTIME_PACKAGES} \
    && rm -rf /var/lib/apt/lists/*

FROM base AS wheels
ARG TORCH_INDEX
ARG EXTRAS
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/helixflow
ENV PATH=/opt/helixflow/bin:$PATH
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY inference_server inference_server
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --constraint constraints.txt --wheel-dir /wheels \
    ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} ".[${EXTRAS}]"

FROM wheels AS install
ARG EXTRAS
# There is one version of each wheel.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --compile --no-index --find-links /wheels "helixflow[${EXTRAS}]"

FROM base AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="HelixFlow" \
      org.opencontainers.image.description="Many Hugging Face models in one memory budget behind an OpenAI-compatible interface" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Ubuntu's image has a user of its own with this id, hence not unique.
RUN groupadd --non-unique --gid 1000 helixflow \
    && useradd --non-unique --uid 1000 --gid 1000 --create-home --home-dir /home/helixflow helixflow \
    && install --directory --owner=1000 --group=1000 /cache
COPY --from=install /opt/helixflow /opt/helixflow
COPY helm/helixflow/files/demo-models.yaml /etc/helixflow/models.yaml
# All that is written lies in these folders, so that the root file system can be read-only.
ENV PATH=/opt/helixflow/bin:$PATH \
    HOME=/home/helixflow \
    PYTHONDONTWRITEBYTECODE=1 \
    HELIXFLOW_CONFIG=/etc/helixflow/models.yaml \
    HELIXFLOW_HOST=0.0.0.0 \
    HELIXFLOW_CACHE=/cache/helixflow \
    HF_HOME=/cache/huggingface \
    NUMBA_CACHE_DIR=/cache/kernels/numba \
    TRITON_CACHE_DIR=/cache/kernels/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/kernels/inductor
WORKDIR /home/helixflow
USER 1000:1000
VOLUME ["/cache", "/home/helixflow", "/tmp"]
EXPOSE 8000
STOPSIGNAL SIGTERM
# Set port and TLS by HELIXFLOW_* variables, or this asks at the wrong place. It asks itself, so any certificate will do.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-c", "import os, ssl, urllib.request as r; e = os.environ; r.urlopen(f\"http{'s' * ('HELIXFLOW_SSL_CERTFILE' in e)}://127.0.0.1:{e.get('HELIXFLOW_PORT', 8000)}/health/live\", timeout=4, context=ssl._create_unverified_context())"]
ENTRYPOINT ["helixflow"]
CMD ["serve"]
