"""deploy/, as far as it can be checked without a cluster: Helm and kubectl render it, and schemas validate it."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest
from annotated_types import Ge, Le
from ruamel.yaml import YAML

import app
from app.core.config import Settings
from tests.chart import CHART, helm, manifest, parse, render

ROOT: Final = Path(__file__).parents[1]
MANIFEST: Final = ROOT / "deploy/kubernetes.yaml"
DOCUMENT: Final = (ROOT / "docs/kubernetes.md").read_text()
KUBECTL: Final = Path(sys.executable).with_name("kubectl")
DIGEST: Final = f"registry.example.com/tasks-api@sha256:{'0' * 64}"
# Every value of the chart, changed. Some names could be taken for numbers.
EVERYTHING: Final[dict[str, Any]] = {
    "image": DIGEST,
    "pullSecret": "0",
    "replicas": 5,
    "secret": "1",
    "ownerSecret": "2",
    "settings": {
        "SHUTDOWN_TIMEOUT": 600,
        "CORS_ORIGINS": "https://one.example,https://two.example",
        "CONCURRENCY_LIMIT": 100_000,
        "AUTH_LEEWAY_SECONDS": 0.5,
    },
    "preStopSeconds": 60,
    "resources": {"requests": {"memory": "1Gi"}, "limits": {"cpu": 2}},
    "ingress": {
        "host": "tasks.example.com",
        "className": "3",
        "tlsSecret": "4",
        "annotations": {"example.com/name": "1"},
    },
}
VALUES: Final[dict[str, dict[str, Any]]] = {
    "defaults": {},
    "one role": {"ownerSecret": ""},
    "plain ingress": {"ingress": {"host": "tasks.example.com"}},
    "everything": EVERYTHING,
}
SECRETS: Final = sorted(
    {"BETTER_AUTH_SECRET", "OTEL_EXPORTER_OTLP_HEADERS"}
    | {name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
)

pytestmark = pytest.mark.ci
each_values = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)


def deployed(values: dict[str, Any] | None = None) -> dict[str, Any]:
    """The specification of the Deployment."""
    spec: dict[str, Any] = parse(render(values))["Deployment"]["spec"]
    return spec


def pod(values: dict[str, Any] | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = deployed(values)["template"]["spec"]
    return spec


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def variables(container: dict[str, Any]) -> dict[str, Any]:
    """The variables of `env`. A reference to a Secret is the pair of its name and the key."""
    return {
        entry["name"]: entry["value"] if "value" in entry else tuple(entry["valueFrom"]["secretKeyRef"].values())
        for entry in container["env"]
    }


class TestChart:
    @each_values
    def test_helm_has_no_objection(self, values: dict[str, Any]) -> None:
        report = helm().lint(CHART, values, strict=True)

        assert report["errors"] == []
        assert [message["error"] for message in report["messages"]] == ["icon is recommended"]

    @pytest.mark.parametrize("release", ["oldest", "1.37"])
    @each_values
    def test_each_document_fits_the_schemas_of_the_oldest_and_of_the_newest_kubernetes(
        self, values: dict[str, Any], release: str
    ) -> None:
        with helm().Chart.load(CHART) as chart:
            (oldest,) = re.fullmatch(r">=(1\.\d+)\.0-0", chart.metadata["kubeVersion"]).groups()  # type: ignore[union-attr]
        version = release.replace("oldest", oldest)
        schemas = import_module("kubernetes_validate")
        documents = parse(render(values))

        assert {schemas.validate(each, version, strict=True) for each in documents.values()} == {version}
        assert ("Ingress" in documents) == bool(values.get("ingress"))

    def test_the_version_is_that_of_the_service(self) -> None:
        with helm().Chart.load(CHART) as chart:
            assert chart.metadata["appVersion"] == app.__version__

    def test_kubernetes_yaml_is_the_chart_with_its_default_values(self) -> None:
        assert MANIFEST.read_text() == manifest(), "`make kubernetes` writes deploy/kubernetes.yaml"

    def test_kustomize_sets_the_namespace_and_the_registry(self) -> None:
        built = parse(subprocess.check_output([KUBECTL, "kustomize", MANIFEST.parent], text=True))

        images = [container["image"] for container in containers(built["Deployment"]["spec"]["template"]["spec"])]
        assert images == [f"registry.example.com/tasks-api:{app.__version__}"] * 2
        assert built.keys() == parse(manifest()).keys()
        assert {document["metadata"]["namespace"] for document in built.values()} == {"tasks"}

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            ({"replica": 3}, "additional properties 'replica' not allowed"),
            ({"secret": {"DATABASE_URL": "s3cret"}}, "at '/secret': got object, want string"),
            ({"settings": {"SHUTDOWN_TIMEOUT": "20"}}, "at '/settings/SHUTDOWN_TIMEOUT': got string, want integer"),
            ({"settings": {"cors_origins": "https://a.example"}}, "'cors_origins' does not match pattern"),
            ({"settings": None}, "missing property 'settings'"),
            ({"settings": {"PORT": 80}}, "settings.PORT is set by the chart"),
            ({"settings": {"WEB_CONCURRENCY": 2}}, "`replicas` is the number of processes"),
            *(({"settings": {name: "s3cret"}}, f"settings.{name} is secret: put it into a Secret") for name in SECRETS),
        ],
    )
    def test_a_wrong_value_is_refused_with_a_sentence_that_does_not_have_it(
        self, values: dict[str, Any], sentence: str
    ) -> None:
        with pytest.raises(helm().HelmError) as refusal:
            render(values)

        assert sentence in str(refusal.value)
        assert "s3cret" not in str(refusal.value)

    def test_the_schema_has_the_bounds_of_the_service(self) -> None:
        schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]
        bounds = schema["properties"]["SHUTDOWN_TIMEOUT"]

        metadata = Settings.model_fields["shutdown_timeout"].metadata
        assert metadata == [Ge(bounds["minimum"]), Le(bounds["maximum"])]


class TestPod:
    @each_values
    def test_it_has_no_right_that_it_does_not_need(self, values: dict[str, Any]) -> None:
        user, group = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0]
        spec = pod(values)

        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": int(user),
            "runAsGroup": int(group),
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for container in containers(spec):
            assert container["securityContext"] == {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
        assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
        assert "volumes" not in spec

    @each_values
    def test_its_secrets_are_references_and_only_the_migration_has_that_of_the_owner(
        self, values: dict[str, Any]
    ) -> None:
        *migrations, service = containers(pod(values))
        names = {name.upper() for name in Settings.model_fields}
        owner = values.get("ownerSecret", "tasks-api-owner")

        for container in (*migrations, service):
            assert container["envFrom"] == [{"secretRef": {"name": values.get("secret", "tasks-api")}}]
            assert variables(container).keys() <= names
        assert variables(service).keys().isdisjoint(SECRETS)
        assert [variables(migration) for migration in migrations] == [
            variables(service) | {"DATABASE_URL_UNPOOLED": (owner, "DATABASE_URL_UNPOOLED")}
        ] * bool(owner)

    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            ("LOG_HEALTH", "on", "on"),
            ("DATABASE_PREPARED_STATEMENTS", "off", "off"),
            ("FASTAPI_OTEL_AUTO_CONFIGURE", "true", "true"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "10000000", "10000000"),
            ("DATABASE_POOL_TIMEOUT", "0.5", "0.5"),
            ("CORS_ORIGINS", "''", ""),
            ("OTEL_RESOURCE_ATTRIBUTES", """'a="b",c=d: e,f={{ .Values }}'""", 'a="b",c=d: e,f={{ .Values }}'),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=$(PORT),b=$$", "a=$$(PORT),b=$$$$"),  # Kubernetes reads `$$` as `$`
        ],
    )
    def test_a_setting_reaches_the_service_as_it_is_written(self, name: str, value: str, text: str) -> None:
        yaml = YAML(typ="safe", pure=True)
        yaml.version = "1.1"  # as Helm reads it: `on` is a truth value
        settings = yaml.load(f"SHUTDOWN_TIMEOUT: 10\n{name}: {value}")

        assert variables(pod({"settings": settings})["containers"][0])[name] == text

    def test_prometheus_finds_its_page_by_the_name_of_a_port(self) -> None:
        prometheus = {"SHUTDOWN_TIMEOUT": 10, "OTEL_METRICS_EXPORTER": "otlp,prometheus"}
        moved = prometheus | {"OTEL_EXPORTER_PROMETHEUS_PORT": 9000}

        ports = [pod({"settings": each})["containers"][0]["ports"][1:] for each in (prometheus, moved)]
        assert ports == [[{"name": "metrics", "containerPort": port}] for port in (9464, 9000)]

    @pytest.mark.parametrize(("pre_stop", "shutdown"), [(1, 3), (5, 10), (1, 600), (60, 3), (60, 600)])
    def test_it_has_more_time_to_end_than_pre_stop_and_the_service_need(self, pre_stop: int, shutdown: int) -> None:
        spec = pod({"preStopSeconds": pre_stop, "settings": {"SHUTDOWN_TIMEOUT": shutdown}})

        (service,) = spec["containers"]
        assert service["lifecycle"] == {"preStop": {"sleep": {"seconds": pre_stop}}}
        assert variables(service)["SHUTDOWN_TIMEOUT"] == str(shutdown)
        assert spec["terminationGracePeriodSeconds"] > pre_stop + shutdown

    def test_its_probes_ask_for_what_the_service_answers_on_its_port(self) -> None:
        (service,) = pod()["containers"]
        paths = json.loads((ROOT / "docs/openapi.json").read_text())["paths"]

        assert service["ports"] == [{"name": "http", "containerPort": int(variables(service)["PORT"])}]
        probed = {name: service[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
        assert [probe["path"] for probe in probed.values()] == ["/health/live", "/health/live", "/health/ready"]
        assert {probe["port"] for probe in probed.values()} == {"http"}
        assert paths.keys() >= {probe["path"] for probe in probed.values()}

    @each_values
    def test_its_labels_lead_the_service_the_budget_and_the_ingress_to_it(self, values: dict[str, Any]) -> None:
        documents = parse(render(values))
        spec = documents["Deployment"]["spec"]
        labels = spec["template"]["metadata"]["labels"]
        (port,) = documents["Service"]["spec"]["ports"]

        selectors = [
            spec["selector"]["matchLabels"],
            documents["Service"]["spec"]["selector"],
            documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
            spec["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
        ]
        assert all(selector == selectors[0] for selector in selectors)
        assert labels.items() > selectors[0].items()
        assert port["targetPort"] == "http"
        assert spec["template"]["spec"]["serviceAccountName"] == documents["ServiceAccount"]["metadata"]["name"]
        if "Ingress" in documents:
            (rule,) = documents["Ingress"]["spec"]["rules"]
            backend = rule["http"]["paths"][0]["backend"]["service"]
            assert backend == {"name": documents["Service"]["metadata"]["name"], "port": {"name": port["name"]}}


class TestDocument:
    def test_its_values_are_accepted_and_have_the_version_of_the_service(self) -> None:
        production, telemetry = re.findall(r"^```yaml\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
        trial = helm().parse_set_string(",".join(re.findall(r"--set (\S+)", DOCUMENT)))

        assert [container["image"] for container in containers(pod(trial))] == ["tasks-api:trial"]
        assert parse(render(YAML(typ="safe").load(production))).keys() > parse(render()).keys()
        ports = pod(YAML(typ="safe").load(telemetry))["containers"][0]["ports"]
        assert [port["name"] for port in ports] == ["http", "metrics"]
        assert f"image: registry.example.com/tasks-api:{app.__version__}\n" in production

    def test_its_commands_make_the_secrets_that_the_chart_refers_to(self, tmp_path: Path) -> None:
        text = DOCUMENT.replace("\\\n", "")
        commands = re.findall(r"^kubectl (.*create secret.*)", text, re.MULTILINE)
        (tmp_path / "production.env").write_text("DATABASE_URL=a\nAUTH_JWKS_URL=b\n")
        environment = {"PATH": os.environ["PATH"], "DATABASE_URL": "a?b&c=$d", "OWNER_URL": "a?b&c=$d"}

        secrets = []
        for command in commands:
            made = f"{KUBECTL} {command} --dry-run=client --output=json"
            output = subprocess.check_output(["bash", "-euc", made], cwd=tmp_path, env=environment)
            secret = json.loads(output)
            secrets.append((secret["metadata"]["name"], {*secret["data"]}))

        assert secrets == [
            ("tasks-api", {"DATABASE_URL", "AUTH_JWT_SECRET"}),
            ("tasks-api", {"DATABASE_URL", "AUTH_JWKS_URL"}),
            ("tasks-api-owner", {"DATABASE_URL_UNPOOLED"}),
        ]
