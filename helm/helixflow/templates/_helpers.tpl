{{- define "helixflow.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- /* At most 50 characters, so that names with a suffix stay under 63. */}}
{{- define "helixflow.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "helixflow.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "helixflow.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "helixflow.selectorLabels" -}}
app.kubernetes.io/name: {{ include "helixflow.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- /* Labels of everything but what selects pods; `component` is set by whoever needs another one. */}}
{{- define "helixflow.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "helixflow.labels" -}}
{{ include "helixflow.selectorLabels" . }}
{{ include "helixflow.commonLabels" . }}
{{- end }}

{{- /* Labels of a part of the release that is not the server: (dict "root" $ "component" "picker") */}}
{{- define "helixflow.partSelectorLabels" -}}
app.kubernetes.io/name: {{ include "helixflow.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "helixflow.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "helixflow.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "helixflow.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{- define "helixflow.configMapName" -}}
{{ .Values.existingConfigMap | default (printf "%s-models" (include "helixflow.fullname" .)) }}
{{- end }}

{{- define "helixflow.modelsYaml" -}}
{{- if .Values.config }}
{{- toYaml .Values.config }}
{{- else }}
{{- .Files.Get "files/demo-models.yaml" }}
{{- end }}
{{- end }}

{{- define "helixflow.claimName" -}}
{{ .Values.cache.persistence.existingClaim | default (printf "%s-cache" (include "helixflow.fullname" .)) }}
{{- end }}

{{- define "helixflow.pickerService" -}}
{{- if .Values.inferencePool.picker.enabled -}}
{{ include "helixflow.fullname" . }}-picker
{{- else -}}
{{ required "inferencePool.picker.existingService: name the endpoint picker's service, or set inferencePool.picker.enabled" .Values.inferencePool.picker.existingService }}
{{- end -}}
{{- end }}

{{- /* What is published, as JSON; one that ends in a slash is the beginning of many. All else (/models/*, /metrics) is about one pod. */}}
{{- define "helixflow.publicPaths" -}}
{{- concat (list "/v1/" "/api/v1/" "/tokenize" "/detokenize" "/openapi.json") .Values.extraPublicPaths | toJson }}
{{- end }}

{{- /* Where `helm test` finds a key; empty where the server asks for none, or all that we know is a file of many. */}}
{{- define "helixflow.testKey" -}}
{{- if not .Values.auth.insecure }}
{{- if .Values.test.existingSecret -}}
{name: {{ .Values.test.existingSecret | quote }}, key: {{ .Values.test.secretKey | quote }}}
{{- else if .Values.auth.existingSecret -}}
{name: {{ .Values.auth.existingSecret | quote }}, key: {{ .Values.auth.secretKey | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{- /* "true" where something else than `replicas` decides how many pods there are. */}}
{{- define "helixflow.isScaled" -}}
{{- if or .Values.autoscaling.hpa.enabled .Values.autoscaling.keda.enabled }}true{{ end }}
{{- end }}

{{- /* Whether there can be several pods at once, apart from rollouts. */}}
{{- define "helixflow.isMany" -}}
{{- if include "helixflow.isScaled" . }}
{{- if gt (int .Values.autoscaling.maxReplicas) 1 }}true{{ end }}
{{- else if gt (int .Values.replicas) 1 }}true
{{- end }}
{{- end }}

{{- /* A claim that only one node may write. */}}
{{- define "helixflow.isSingleWriter" -}}
{{- with .Values.cache.persistence }}
{{- if and .enabled (not (has "ReadWriteMany" .accessModes)) }}true{{ end }}
{{- end }}
{{- end }}

{{- define "helixflow.strategy" -}}
{{- if .Values.strategy }}
{{- toYaml .Values.strategy }}
{{- else if and (not (include "helixflow.isMany" .)) (or .Values.gpu.enabled (include "helixflow.isSingleWriter" .)) }}
type: Recreate
{{- else if .Values.gpu.enabled }}
type: RollingUpdate
rollingUpdate: {maxSurge: 0, maxUnavailable: 1}
{{- else }}
type: RollingUpdate
rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
{{- end }}
{{- end }}

{{- /* What no schema can say, because it compares values. Numbers go through `int`: helm 3.18 takes a bare 0 for true. */}}
{{- define "helixflow.validate" -}}
{{- $least := add .Values.server.preStopSeconds .Values.server.shutdownTimeoutSeconds }}
{{- if le (int .Values.terminationGracePeriodSeconds) (int $least) }}
{{- fail (printf "terminationGracePeriodSeconds (%v) must be more than server.preStopSeconds + server.shutdownTimeoutSeconds (%v), or pods are killed while they drain" .Values.terminationGracePeriodSeconds $least) }}
{{- end }}
{{- if and (include "helixflow.isSingleWriter" .) (include "helixflow.isMany" .) }}
{{- fail "cache.persistence.accessModes: several pods need ReadWriteMany (say so here of existingClaim too); or set cache.persistence.enabled to false" }}
{{- end }}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) }}
{{- fail "autoscaling.minReplicas must not be more than autoscaling.maxReplicas" }}
{{- end }}
{{- with .Values.autoscaling.hpa }}
{{- if and .enabled (not (or (gt (int .cpuUtilization) 0) (gt (int .memoryUtilization) 0) .podMetrics .externalMetrics)) }}
{{- fail "autoscaling.hpa: set one of cpuUtilization, memoryUtilization, podMetrics, externalMetrics" }}
{{- end }}
{{- end }}
{{- if and .Values.autoscaling.keda.enabled (lt (int .Values.autoscaling.minReplicas) 1) (not .Values.autoscaling.keda.query) }}
{{- fail "autoscaling.minReplicas 0: pods that do not exist report no waiting requests, so nothing would ever start one; set autoscaling.keda.query to one that counts in front of them, such as a gateway's" }}
{{- end }}
{{- if and .Values.autoscaling.hpa.enabled (lt (int .Values.autoscaling.minReplicas) 1) }}
{{- fail "autoscaling.minReplicas: a HorizontalPodAutoscaler keeps at least 1 pod; KEDA can go to 0" }}
{{- end }}
{{- end }}
