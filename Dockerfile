# Images of debros for whoever builds with Docker, Podman or BuildKit; `cargo xtask image` makes the same without any of them.
#   docker build --target node     --tag debros/node:0.1.0     .
#   docker build --target operator --tag debros/operator:0.1.0 .
# Both run as user 65532 and write nothing outside of what is mounted: use them with a read-only root file system.

FROM rust:1.95-bookworm AS source
WORKDIR /source
COPY . .

FROM source AS node-programs
RUN cargo build --release --locked --bins --package debros-node --package debros-cli \
    && strip --strip-debug target/release/debros-node target/release/debros

FROM source AS operator-programs
RUN cargo build --release --locked --bins --package operator \
    && strip --strip-debug target/release/debros-operator

FROM debian:bookworm-slim AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 65532 debros \
    && useradd --uid 65532 --gid 65532 --home-dir /tmp --no-create-home --shell /bin/sh debros \
    && install --directory --owner=65532 --group=65532 --mode=0700 /var/lib/debros
ENV HOME=/tmp
LABEL org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"

FROM base AS operator
COPY --from=operator-programs /source/target/release/debros-operator /usr/bin/
LABEL org.opencontainers.image.title="debros operator" \
      org.opencontainers.image.description="Keeps clusters of debros on Kubernetes (debros-operator)."
USER 65532:65532
EXPOSE 8080/tcp
ENTRYPOINT ["/usr/bin/debros-operator"]

# Last, so that a build without a target makes it.
FROM base AS node
COPY --from=node-programs /source/target/release/debros-node /source/target/release/debros /usr/bin/
LABEL org.opencontainers.image.title="debros node" \
      org.opencontainers.image.description="A node of debros (debros-node) and its command line client (debros)."
USER 65532:65532
EXPOSE 4001/tcp 4001/udp
ENTRYPOINT ["/usr/bin/debros-node"]
