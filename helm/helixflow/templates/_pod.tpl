{{- /* The pod: who it is, where it runs, what is in it. Containers and volumes stand in _container.tpl. */}}
{{- define "helixflow.podSpec" -}}
serviceAccountName: {{ include "helixflow.serviceAccountName" . }}
automountServiceAccountToken: false
# Links would be variables such as HELIXFLOW_PORT for every service of the namespace, beside the server's own.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with (include "helixflow.tolerations" . | trim) }}
tolerations:
  {{- . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{- toYaml . | nindent 4 }}
    {{- if not .labelSelector }}
    labelSelector:
      matchLabels:
        {{- include "helixflow.selectorLabels" $ | nindent 8 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- with .Values.initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - {{- include "helixflow.container" . | nindent 4 }}
  {{- with .Values.sidecars }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  {{- include "helixflow.volumes" . | trim | nindent 2 }}
{{- end }}

{{- define "helixflow.tolerations" -}}
{{- if and .Values.gpu.enabled .Values.gpu.toleration }}
{{- $taints := list .Values.gpu.resource }}
{{- if hasPrefix "nvidia.com/mig-" .Values.gpu.resource }}
{{- /* Nodes carry the taint of whole GPUs, whatever they are cut into. */}}
{{- $taints = prepend $taints "nvidia.com/gpu" }}
{{- end }}
{{- range $taints }}
- key: {{ . }}
  operator: Exists
  effect: NoSchedule
{{- end }}
{{- end }}
{{- with .Values.tolerations }}
{{ toYaml . }}
{{- end }}
{{- end }}
