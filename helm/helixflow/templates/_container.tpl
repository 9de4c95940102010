{{- /* The server's container and its volumes. Everything that it writes lies under /cache, /tmp, /home/helixflow or /dev/shm. */}}
{{- define "helixflow.container" -}}
name: helixflow
image: {{ include "helixflow.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - serve
  - --config=/etc/helixflow/models.yaml
  - {{ printf "--host=%s" .Values.server.host | quote }}
  - --port={{ .Values.server.port }}
  - --shutdown-timeout={{ .Values.server.shutdownTimeoutSeconds }}s
  - --log-level={{ .Values.server.logLevel }}
  - --log-json
  {{- if .Values.auth.keyFileSecret }}
  - {{ printf "--api-key-file=/etc/helixflow-keys/%s" .Values.auth.keyFileSecretKey | quote }}
  {{- end }}
  {{- if .Values.auth.insecure }}
  - --insecure-no-auth
  {{- end }}
  {{- range .Values.server.extraArgs }}
  - {{ . | quote }}
  {{- end }}
env:
  {{- include "helixflow.env" . | trim | nindent 2 }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: http
    containerPort: {{ .Values.server.port }}
    protocol: TCP
startupProbe:
  httpGet: {path: /health/startup, port: http}
  {{- toYaml .Values.probes.startup | nindent 2 }}
readinessProbe:
  httpGet: {path: /health/ready, port: http}
  {{- toYaml .Values.probes.readiness | nindent 2 }}
livenessProbe:
  httpGet: {path: /health/live, port: http}
  {{- toYaml .Values.probes.liveness | nindent 2 }}
{{- if gt (int .Values.server.preStopSeconds) 0 }}
lifecycle:
  preStop:
    exec:
      command: [sleep, {{ .Values.server.preStopSeconds | quote }}]
{{- end }}
resources:
  {{- include "helixflow.resources" . | nindent 2 }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  - {name: models, mountPath: /etc/helixflow, readOnly: true}
  - {name: cache, mountPath: /cache}
  - {name: tmp, mountPath: /tmp}
  - {name: home, mountPath: /home/helixflow}
  {{- if .Values.shmSize }}
  - {name: shm, mountPath: /dev/shm}
  {{- end }}
  {{- if .Values.auth.keyFileSecret }}
  - {name: keys, mountPath: /etc/helixflow-keys, readOnly: true}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "helixflow.env" -}}
- {name: HOME, value: /home/helixflow}
- {name: HELIXFLOW_CACHE, value: /cache/helixflow}
- {name: HF_HOME, value: /cache/huggingface}
- {name: NUMBA_CACHE_DIR, value: /cache/kernels/numba}
- {name: TRITON_CACHE_DIR, value: /cache/kernels/triton}
- {name: TORCHINDUCTOR_CACHE_DIR, value: /cache/kernels/inductor}
{{- with .Values.auth }}
{{- if and .existingSecret (not .insecure) }}
- name: HELIXFLOW_API_KEY
  valueFrom: {secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .secretKey | quote }}}}
{{- if .inferenceSecretKey }}
- name: HELIXFLOW_INFERENCE_API_KEY
  valueFrom: {secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .inferenceSecretKey | quote }}}}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.huggingface }}
{{- if .tokenSecret }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .tokenSecret | quote }}, key: {{ .tokenSecretKey | quote }}}}
{{- end }}
{{- if .offline }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* The GPU stands in requests and limits alike: Kubernetes does not share it. */}}
{{- define "helixflow.resources" -}}
{{- $resources := deepCopy .Values.resources }}
{{- if .Values.gpu.enabled }}
{{- range $part := list "requests" "limits" }}
{{- $_ := set $resources $part (merge (dict $.Values.gpu.resource $.Values.gpu.count) (index $resources $part | default dict)) }}
{{- end }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- define "helixflow.volumes" -}}
- name: models
  configMap: {name: {{ include "helixflow.configMapName" . }}}
- name: cache
  {{- if .Values.cache.persistence.enabled }}
  persistentVolumeClaim: {claimName: {{ include "helixflow.claimName" . }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .Values.cache.sizeLimit }}}
  {{- end }}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.tmpSize }}}
- name: home
  emptyDir: {sizeLimit: 1Gi}
{{- with .Values.shmSize }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ . }}}
{{- end }}
{{- with .Values.auth.keyFileSecret }}
- name: keys
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
