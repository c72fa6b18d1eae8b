# A container with the package for CPUs or TPUs (docs/release.md).
#
#   docker build -t actfer_jax .                            CPUs
#   docker build -t actfer_jax:tpu --build-arg EXTRA=tpu .  TPUs
#   docker run --rm -v "$PWD:/work" actfer_jax analyze photo.jpg --checkpoint=demo --out=reading
#   docker run --rm --privileged --net=host -v "$PWD:/work" actfer_jax:tpu train --config=ucgrpo --workdir=gs://BUCKET/RUN
FROM python:3.11-slim
ARG EXTRA=""
WORKDIR /source
COPY setup.py constraints.txt pyproject.toml README.md LICENSE ./
COPY actfer_jax actfer_jax
COPY configs configs
RUN python -m pip install --no-cache-dir ".${EXTRA:+[$EXTRA]}" -c constraints.txt && rm -rf /source
WORKDIR /work
ENTRYPOINT ["actfer"]
CMD ["--help"]
