# Gopher for containers: no compiler in it, not run as root, and with the right to capture if the container has it.
#
#   docker build --tag gopher .
#   docker run --rm --network host --cap-drop ALL --cap-add NET_RAW gopher -c -p 80 -u machineB:3280
#   docker run --rm --publish 3280:3280 --cap-drop ALL gopher -r -p 3280 -u shop:80
#
# docs/operations.md says more.

# Debian with Python; from a mirror: --build-arg BASE=mirror.example/python:3.13-slim-bookworm
ARG BASE=python:3.13-slim-bookworm

FROM $BASE AS build
# Debian takes old versions out of its archive: a pinned one could soon not be built any more.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in LICENSE README.md ./
COPY gopher gopher
# Copies, so that the capability below is gopher's alone and not that of every Python program.
RUN python -m venv --copies /opt/gopher \
    && /opt/gopher/bin/python -m pip install --no-cache-dir . \
    && /opt/gopher/bin/python -m pip uninstall --yes pip

FROM $BASE
COPY --from=build /opt/gopher /opt/gopher
# Permitted, not effective: gopher makes them so, and the program can be started, too, where they are not allowed.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libcap2-bin \
    && setcap cap_net_raw,cap_net_bind_service+p /opt/gopher/bin/python \
    && apt-get purge --yes --auto-remove libcap2-bin \
    && rm -rf /var/lib/apt/lists/*
# By number: Kubernetes cannot know of a name that it is not root's.
USER 65534:65534
# Isolated: nothing is imported from where it is started.
ENTRYPOINT ["/opt/gopher/bin/python", "-I", "-m", "gopher"]
CMD ["--help"]
