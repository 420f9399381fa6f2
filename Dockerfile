# The service, without tests, development packages and the embedded PostgreSQL.
#
# Nobody has built or run this image yet, because no Docker engine was available.
# tests/test_deployment_files.py lints this file, and runs CMD and HEALTHCHECK without Docker on the copied files.
#
# Set DATABASE_URL, and AUTH_JWT_SECRET or AUTH_JWKS_URL. Without authentication, the service refuses to listen on
# 0.0.0.0. docs/deploy-neon.md has an example. Secrets belong in the environment of the container, not in this file.
#
# Before you deploy, pin the image below to a digest, as docs/release.md says.

FROM python:3.13-slim-trixie AS build

# Telemetry needs `--build-arg REQUIREMENTS=requirements-otel.txt` (docs/telemetry.md), and tools for agents
# `requirements-mcp.txt` (docs/agents.md). For both, name both files, with a space between them.
ARG REQUIREMENTS=requirements.txt
COPY requirements.txt /build/
COPY requirements-otel.txt /build/
COPY requirements-mcp.txt /build/
# Only wheels: a package that needs a compiler fails here. The environment has no pip, because it never changes.
RUN python -m venv --without-pip /opt/venv \
    && for file in $REQUIREMENTS; do \
        pip --python /opt/venv/bin/python install --no-cache-dir --only-binary=:all: -r "/build/$file" || exit 1; \
    done


FROM python:3.13-slim-trixie

RUN groupadd --gid 10001 tasks \
    && useradd --uid 10001 --gid tasks --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tasks

WORKDIR /srv/tasks
COPY --from=build /opt/venv /opt/venv
# The same layout as in the repository, because the service expects the migrations beside `backend`.
COPY alembic.ini ./
COPY alembic ./alembic
COPY backend ./backend
COPY docs ./docs

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/srv/tasks/backend \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=8000

# A number, so that Kubernetes can verify that the user is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM

# The service listens after it has migrated the database, which may take a while.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os; from urllib import request; request.build_opener(request.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['PORT'] + '/health/live', timeout=2)"]

CMD ["python", "-m", "app"]
