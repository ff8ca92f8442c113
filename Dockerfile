# syntax=docker/dockerfile:1
# docker build -t argen .
# mkdir -p outputs && docker run --rm --user "$(id -u)" -v "$PWD/outputs:/app/outputs" argen train experiment=quickstart
# With a GPU: add --gpus all to docker run; torch from PyPI carries the CUDA libraries.
# For a small image without CUDA: docker build --build-arg INDEX=https://download.pytorch.org/whl/cpu .
FROM python:3.11-slim

ARG INDEX=https://pypi.org/simple
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 1000 argen && mkdir -p /app/outputs && chown -R argen /app
WORKDIR /app

# Dependencies first, so that a change of the code does not install them again.
COPY constraints.txt pyproject.toml README.md LICENSE NOTICE ./
RUN python - <<'PY' > requirements.txt
import tomllib

print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))
PY
RUN pip install --extra-index-url "$INDEX" -c constraints.txt -r requirements.txt

COPY argen ./argen
COPY configs ./configs
RUN pip install --extra-index-url "$INDEX" -c constraints.txt . && rm -rf argen configs

USER argen
VOLUME /app/outputs
ENTRYPOINT ["argen"]
CMD ["--help"]
