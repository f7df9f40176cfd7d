{{/* What every pod, container and object of ours has in common. */}}

{{- define "fedlora.labels" -}}
app.kubernetes.io/name: fedlora
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "fedlora.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
shareProcessNamespace: true
terminationGracePeriodSeconds: 30
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "fedlora.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Where pods may run and from where images come; of the values of one kind of pod. */}}
{{- define "fedlora.placement" -}}
{{- with .pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What a worker is given beyond its name and server. */}}
{{- define "fedlora.workerEnvironment" -}}
- {name: FEDLORA_WORKER__DEVICE, value: {{ .Values.workers.device | quote }}}
- {name: FEDLORA_WORKER__THREADS, value: {{ .Values.workers.threads | quote }}}
{{- if .Values.monitoring.enabled }}
- {name: FEDLORA_WORKER__METRICS_ADDRESS, value: "0.0.0.0:9401"}
{{- end }}
{{- end }}

{{- define "fedlora.examples" -}}
- name: examples
  {{- toYaml (.Values.examples | default (dict "configMap" (dict "name" "fedlora-examples"))) | nindent 2 }}
{{- end }}

{{- define "fedlora.workerReadiness" -}}
readinessProbe:
  exec: {command: [python, -m, client_worker.healthcheck]}
  periodSeconds: 15
  timeoutSeconds: 10
{{- end }}

{{- define "fedlora.scrape" -}}
annotations: {prometheus.io/scrape: "true", prometheus.io/port: {{ . | quote }}}
{{- end }}

{{/* Egress to the cluster's DNS. */}}
{{- define "fedlora.dns" -}}
- to:
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: kube-system}
      podSelector:
        matchLabels: {k8s-app: kube-dns}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end }}

{{/* Who signs a certificate, for how long, with what key. */}}
{{- define "fedlora.certificate" -}}
issuerRef: {name: fedlora}
duration: 2160h
renewBefore: 720h
privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
{{- end }}
