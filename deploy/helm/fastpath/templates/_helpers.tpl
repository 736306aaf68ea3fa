{{- define "fastpath.selector" -}}
app.kubernetes.io/name: fastpath-agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fastpath.labels" -}}
{{ include "fastpath.selector" . }}
app.kubernetes.io/part-of: fastpath
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
