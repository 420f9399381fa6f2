{{- define "selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "labels" -}}
{{ include "selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- /* What the migration and the service have in common. It ends with the list `env`, so that more can follow. */ -}}
{{- define "container" -}}
image: {{ .Values.image | default (printf "%s:%s" .Chart.Name .Chart.AppVersion) | quote }}
securityContext:
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
resources:
  {{- toYaml .Values.resources | nindent 2 }}
envFrom:
  - secretRef:
      name: {{ .Values.secret | quote }}
env: # takes precedence over envFrom
  - name: HOST
    value: 0.0.0.0
  - name: PORT
    value: "8000"
  - name: WEB_CONCURRENCY
    value: "1"
  {{- range $name, $value := .Values.settings }}
  {{- if or (has $name (list "DATABASE_URL" "DATABASE_URL_UNPOOLED" "AUTH_JWT_SECRET" "BETTER_AUTH_SECRET")) (hasSuffix "_HEADERS" $name) }}
  {{- fail (printf "settings.%s is secret: put it into a Secret, and name that in `secret` or `ownerSecret`" $name) }}
  {{- else if has $name (list "HOST" "PORT" "WEB_CONCURRENCY") }}
  {{- fail (printf "settings.%s is set by the chart; `replicas` is the number of processes" $name) }}
  {{- end }}
  {{- /* A million as `1000000` and not `1e+06`; `on` and `off`, which YAML reads as truth values; a literal `$`. */}}
  {{- $text := kindIs "string" $value | ternary $value (toJson $value) }}
  {{- if and (kindIs "bool" $value) (not (contains "OTEL_" $name)) }}
  {{- $text = ternary "on" "off" $value }}
  {{- end }}
  - name: {{ $name }}
    value: {{ $text | replace "$" "$$" | quote }}
  {{- end }}
{{- end }}
