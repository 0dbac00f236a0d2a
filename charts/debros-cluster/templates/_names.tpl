{{- define "cluster.name" -}}
{{- .Values.name | default .Release.Name -}}
{{- end -}}

{{- define "cluster.image" -}}
{{- .Values.image | default (printf "debros/node:%s" .Chart.AppVersion) -}}
{{- end -}}

{{- define "cluster.labels" -}}
app.kubernetes.io/part-of: debros
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}
