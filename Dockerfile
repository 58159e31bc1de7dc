# syntax=docker/dockerfile:1
# Two images: `cpu` without torch, for everything but encoding and ranking; `full` with torch, on a GPU or a CPU.
#   docker build --target cpu -t stream-app:cpu .
#   docker build --target full -t stream-app:full .
# Pin the base by what your registry says: --build-arg BASE=python:3.11.13-slim-bookworm@sha256:…
ARG BASE=python:3.11.13-slim-bookworm

FROM ${BASE} AS source
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY stream_app stream_app

FROM source AS build-cpu
RUN /app/bin/pip install -c constraints.txt '.[tracing]'

FROM source AS build-full
RUN /app/bin/pip install -c constraints.txt '.[gpu,tracing]'

FROM ${BASE} AS runtime
# everything that is written goes to the volume or to /tmp: the root file system can be read-only
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin stream-app \
    && install -d -o stream-app -g stream-app /var/lib/stream-app
ENV PATH=/app/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    STREAM_APP_INTERESTS_DATA_DIR=/var/lib/stream-app \
    STREAM_APP_OBSERVABILITY_HOST=0.0.0.0
WORKDIR /var/lib/stream-app
USER 10001:10001
VOLUME /var/lib/stream-app
EXPOSE 8600
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8600/healthz', timeout=4)"]
ENTRYPOINT ["stream-app"]
CMD ["--help"]

FROM runtime AS cpu
COPY --from=build-cpu /app /app

FROM runtime AS full
COPY --from=build-full /app /app
