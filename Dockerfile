# mmnetaug on CPUs:
#   docker build -t mmnetaug . && docker run -v "$PWD:/work" mmnetaug describe yolov3_mbv3_w035_netaug_voc
# On NVIDIA GPUs (compiling mmcv's operators for all of these architectures takes long):
#   docker build -t mmnetaug --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 --build-arg TORCH=cu130 \
#     --build-arg FORCE_CUDA=1 . && docker run --gpus all --ipc host -v "$PWD:/work" mmnetaug ...
# The toolkit's major version must be the one that torch is built for. Both images are linted, not built yet.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# which of torch's builds (the package registry's is for CUDA, and some gigabytes larger than cpu)
ARG TORCH=cpu
# 1: compile mmcv's operators for GPUs, of which none can be seen while an image is built
ARG FORCE_CUDA=0
ARG TORCH_CUDA_ARCH_LIST="7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/${TORCH} \
    PIP_NO_CACHE_DIR=1 \
    PATH=/mmnetaug/.venv/bin:$PATH
COPY . /mmnetaug
RUN make -C /mmnetaug setup

WORKDIR /work
ENTRYPOINT ["mmnetaug"]
