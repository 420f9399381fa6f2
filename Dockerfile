# The service alone: no tests, no development packages, no embedded PostgreSQL.
#
# Nobody has built or run this image yet: there was no Docker engine where it was written.
# tests/test_deployment_files.py lints it, and goes through its steps without one: what is copied and installed, CMD,
# HEALTHCHECK.
#
# DATABASE_URL has to be set, and AUTH_JWT_SECRET or AUTH_JWKS_URL: without authentication the service refuses to listen
# on 0.0.0.0. docs/deploy-neon.md has an example. Secrets belong in the environment of the container, never in here.

FROM python:3.13-slim-trixie AS build

COPY requirements.txt /build/
# Wheels only: what would need a compiler fails here. No pip in the environment, as nothing is to be installed later.
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --only-binary=:all: -r /build/requirements.txt


FROM python:3.13-slim-trixie

RUN groupadd --gid 10001 tasks \
    && useradd --uid 10001 --gid tasks --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tasks

WORKDIR /srv/tasks
COPY --from=build /opt/venv /opt/venv
# Laid out as in the repository: the migrations are looked for beside `backend`.
COPY alembic.ini ./
COPY alembic ./alembic
COPY backend ./backend

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/srv/tasks/backend \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=8000

# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM

# The service listens when it has reached and migrated the database, which may take a while.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os; from urllib import request; request.build_opener(request.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['PORT'] + '/health/live', timeout=2)"]

CMD ["python", "-m", "app"]
