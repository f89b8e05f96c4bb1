{{/* The name of everything in the release; 40 characters leave room for suffixes. */}}
{{- define "lunaq.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that never change: the Deployment's selector. */}}
{{- define "lunaq.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Labels of everything. */}}
{{- define "lunaq.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "lunaq.serviceAccountName" -}}
{{- default (include "lunaq.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{/* An image's reference; takes (dict "image" ... "chart" .Chart). */}}
{{- define "lunaq.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The Restricted pod security standard, for the pod and for the container. */}}
{{- define "lunaq.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}
{{- define "lunaq.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What the operator needs in each namespace that it serves. No wildcards, and no right to bind or escalate: it makes no roles. */}}
{{- define "lunaq.namespaceRules" -}}
- apiGroups: [lunaq.dev]
  resources: [brokers, queues, consumers]
  verbs: [list, watch, patch]
- apiGroups: [lunaq.dev]
  resources: [brokers/status, queues/status, consumers/status]
  verbs: [patch]
# To own objects, where the API server checks owner references (OwnerReferencesPermissionEnforcement).
- apiGroups: [lunaq.dev]
  resources: [consumers/finalizers]
  verbs: [update]
# RBAC is where the permissions of Consumers come from.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [list, watch]
# What a Consumer is made of.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# An annotation on a pod makes the kubelet refresh its mounted policy at once.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, patch]
# By name only; never listed, never watched. Written is the Secret with a Consumer's own broker user.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* What the operator needs besides, where it serves the whole cluster. */}}
{{- define "lunaq.clusterRules" -}}
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles, clusterrolebindings]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [namespaces]
  verbs: [list, watch]
# Its UID says who this cluster is, where no clusterID is set.
- apiGroups: [""]
  resources: [namespaces]
  resourceNames: [kube-system]
  verbs: [get]
{{- end -}}
