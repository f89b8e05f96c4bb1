# The two images: `--target operator` and `--target runtime`.
#   docker build --target runtime -t lunaq-runtime .
# Any base with Python 3.11 or newer will do. BUILD_BASE needs venv as well, and the same Python at the same path.
ARG BASE=docker.io/library/python:3.12-slim-bookworm
ARG BUILD_BASE=${BASE}

# pip and the build backend stand apart from what is shipped, so that neither ends up in an image.
FROM ${BUILD_BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/lunaq
COPY requirements/dev.txt requirements/
RUN awk '/^[A-Za-z0-9]/ { keep = /^(editables|hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } keep' \
      requirements/dev.txt >requirements/build.txt \
 && /opt/build/bin/pip install --quiet --require-hashes -r requirements/build.txt

# What is pinned comes before what is ours: a change of source does not install the pins again.
FROM build AS runtime-pins
COPY requirements/runtime.txt requirements/
RUN /opt/build/bin/pip --python /opt/lunaq/bin/python install --quiet --no-compile --require-hashes -r requirements/runtime.txt \
 && /opt/lunaq/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/lunaq/lib

FROM runtime-pins AS operator-pins
COPY requirements/operator.txt requirements/
RUN /opt/build/bin/pip --python /opt/lunaq/bin/python install --quiet --no-compile --require-hashes -r requirements/operator.txt \
 && /opt/lunaq/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/lunaq/lib

FROM runtime-pins AS runtime-packages
COPY runtime runtime
RUN /opt/build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir wheels ./runtime \
 && /opt/build/bin/pip --python /opt/lunaq/bin/python install --quiet --no-compile --no-deps --no-index --root /packages wheels/*.whl \
 && /opt/lunaq/bin/python -m compileall -q -s /packages --invalidation-mode unchecked-hash /packages

FROM operator-pins AS operator-packages
COPY runtime runtime
COPY operator operator
RUN /opt/build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir wheels ./runtime ./operator \
 && /opt/build/bin/pip --python /opt/lunaq/bin/python install --quiet --no-compile --no-deps --no-index --root /packages wheels/*.whl \
 && /opt/lunaq/bin/python -m compileall -q -s /packages --invalidation-mode unchecked-hash /packages

# Nothing is written at run time, so the root file system may be read-only.
FROM ${BASE} AS final
ENV PATH=/opt/lunaq/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.vendor=Lunaq
WORKDIR /opt/lunaq
USER 65532:65532

FROM final AS runtime
LABEL org.opencontainers.image.title=lunaq-runtime \
      org.opencontainers.image.description="Runs Lua handlers on AMQP 0-9-1 queues."
COPY --from=runtime-pins /opt/lunaq /opt/lunaq
COPY --from=runtime-packages /packages /
ENTRYPOINT ["lunaq-runtime"]

FROM final AS operator
LABEL org.opencontainers.image.title=lunaq-operator \
      org.opencontainers.image.description="Runs queue consumers written in Lua on Kubernetes."
COPY --from=operator-pins /opt/lunaq /opt/lunaq
COPY --from=operator-packages /packages /
ENTRYPOINT ["lunaq-operator"]
