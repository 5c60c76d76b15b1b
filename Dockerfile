# The image of every node, head and workers, with or without a GPU: this checkout and the versions of
# constraints.txt, which the test suite passed with.
#
#   docker build -t REGISTRY/curate:TAG . && docker push REGISTRY/curate:TAG
#
# PyPI's PyTorch brings CUDA itself; of NVIDIA the host needs the driver alone, 580 or newer for
# CUDA 13. NVIDIA_VISIBLE_DEVICES stays unset: a pod that asks for no GPU must not see its node's.
FROM python:3.11-slim-bookworm

# wget is what KubeRay's probes call. Debian keeps no older version that one could pin:
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*

RUN pip install --no-cache-dir uv==0.13.9 \
    && useradd --uid 1000 --create-home curate
WORKDIR /home/curate/curate

# Apart from the code, so that some GB of wheels are fetched again only when they change
COPY pyproject.toml constraints.txt ./
RUN uv pip install --system --no-cache -r pyproject.toml -c constraints.txt

# Editable: `curate`, jobs/ and the workers of a job all run this one copy
COPY . .
RUN uv pip install --system --no-cache --no-deps --editable .

# By number: Kubernetes' runAsNonRoot cannot look up a name
USER 1000
CMD ["curate", "--help"]
