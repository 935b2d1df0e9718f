# mmnetaug on CPUs: docker build -t mmnetaug . && docker run -v $PWD:/work mmnetaug describe yolov3_mbv3_w035_netaug_voc
FROM python:3.11-slim-bookworm

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*

# the package registry's torch is built for CUDA, and some gigabytes larger
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    PIP_NO_CACHE_DIR=1 \
    PATH=/mmnetaug/.venv/bin:$PATH
COPY . /mmnetaug
RUN make -C /mmnetaug setup

WORKDIR /work
ENTRYPOINT ["mmnetaug"]
