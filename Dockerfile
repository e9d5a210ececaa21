# CPU:  docker build -t prism-coca .
# GPU:  docker build -t prism-coca:cuda --build-arg TORCH=cuda .     (CUDA 13; on the host its driver and the NVIDIA Container Toolkit)
# From a mirror of PyPI: --build-arg PIP_INDEX_URL=https://pypi.tuna.tsinghua.edu.cn/simple
# Run:  docker run --rm -v "$PWD:/work" prism-coca train-config --config config.yaml --resume auto      (GPU: --gpus all)
FROM python:3.11-slim

ARG TORCH=cpu
ARG PIP_INDEX_URL=https://pypi.org/simple
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# of the user inside, who writes to /work: `id -u` of the one outside
ARG UID=1000

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

WORKDIR /opt/prism-coca
COPY requirements.lock requirements-cuda.lock ./
RUN case "$TORCH" in \
    cpu) python -m pip install --no-deps --require-hashes --extra-index-url "$TORCH_INDEX_URL" -r requirements.lock ;; \
    cuda) python -m pip install --no-deps --require-hashes -r requirements.lock -r requirements-cuda.lock ;; \
    *) echo "TORCH is $TORCH: give cpu or cuda" >&2; exit 2 ;; \
    esac

COPY pyproject.toml README.md LICENSE prism_coca.py train_finetune.py train_with_config.py inference.py ./
COPY coca_pytorch coca_pytorch
COPY prism prism
COPY finetune finetune
RUN python -m pip install --no-deps --no-build-isolation . && rm -r build *.egg-info

RUN useradd --create-home --uid "$UID" prism && mkdir /work && chown prism /work
USER prism
WORKDIR /work
ENTRYPOINT ["prism-coca"]
CMD ["--help"]
