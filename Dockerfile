# The box: runs exports, and trains nothing. At most 400 MB, which CI checks (with `--build-arg EXTRAS=serve,video` more).
#
#   docker build --tag litheseg .
#   docker run --rm --user "$(id -u)" --volume "$PWD:/work" litheseg predict exports photos/ --output labelled/
#   docker run --rm --publish 8000:8000 --volume "$PWD:/work:ro" litheseg serve exports --host 0.0.0.0

FROM python:3.12-bookworm AS build
ARG EXTRAS=serve
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE requirements-dev.lock ./
COPY litheseg litheseg
RUN python -m venv --without-pip /opt/litheseg \
    && pip --python /opt/litheseg/bin/python install --no-cache-dir --constraint requirements-dev.lock ".[${EXTRAS}]" \
    && /opt/litheseg/bin/python -I -c 'import litheseg.masks._resizing, litheseg.masks._upsampling'

FROM python:3.12-slim-bookworm
COPY --from=build /opt/litheseg /opt/litheseg
ENV PATH="/opt/litheseg/bin:$PATH"
RUN useradd --uid 1000 --create-home box
USER 1000
WORKDIR /work
ENTRYPOINT ["litheseg"]
CMD ["--help"]
