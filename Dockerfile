# One image for every process: `python -m controlplane`, `dataplane`, `worker_agent`, `trainer`, `emulator`.
FROM python:3.11-slim

# LightGBM's wheels want the OpenMP runtime.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY requirements.lock ./
RUN pip install --no-cache-dir --root-user-action=ignore -r requirements.lock

COPY pyproject.toml setup.py README.md ./
COPY proto ./proto
COPY contract ./contract
COPY prediction ./prediction
COPY runtime ./runtime
COPY dataplane ./dataplane
COPY controlplane ./controlplane
COPY worker_agent ./worker_agent
COPY trainer ./trainer
COPY emulator ./emulator
COPY loadgen ./loadgen
COPY simulation ./simulation
COPY headway ./headway
# The compiler is for what `setup.py` names, and gone again in the same layer.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && pip install --no-cache-dir --root-user-action=ignore --no-deps -e . \
    && apt-get purge -y --auto-remove gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && python -c "from runtime import _passing; from prediction import _trees" && python -m compileall -q /app
RUN useradd --system --uid 10001 --home /app headway \
    && install -d -o headway /var/lib/headway /var/cache/headway /run/headway

USER headway
# Tokenizers that come from the hub are kept there: the code's own directory is not to be written to.
ENV PYTHONUNBUFFERED=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HOME=/var/cache/headway
CMD ["headway", "--help"]
