{{/* Short enough that Kubernetes cuts nothing off the names of pods, by which the autoscaler's queries find them. */}}
{{- define "model-serving.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" -}}
{{- else if contains "model-serving" .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-model-serving" .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What Prometheus calls the release; alerts know the server's jobs by this part of their names. */}}
{{- define "model-serving.job" -}}
{{- $fullname := include "model-serving.fullname" . -}}
{{- ternary $fullname (printf "%s-model-serving" $fullname) (contains "model-serving" $fullname) -}}
{{- end -}}

{{/* What never changes of a release's pods, since a Deployment's selector cannot change. */}}
{{- define "model-serving.selectorLabels" -}}
app.kubernetes.io/name: model-serving
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "model-serving.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "model-serving.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: model-serving
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* The operator's objects carry the labels that it selects them by. */}}
{{- define "model-serving.monitoringLabels" -}}
{{ include "model-serving.labels" . }}
{{- with .Values.monitoring.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "model-serving.image" -}}
{{- $repository := required "image.repository is not set: say where your image is, such as registry.example.com/model-serving" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- $tag := printf "v%s%s" .Chart.AppVersion (ternary "-gpu" "" .Values.gpu.enabled) -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default $tag) -}}
{{- end -}}
{{- end -}}

{{- define "model-serving.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "model-serving.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* What is served: a file, or a folder of models, such as a whole bucket. A query in a URI is no part of a file's name. */}}
{{- define "model-serving.modelPath" -}}
{{- $uri := regexReplaceAll "[?#].*$" .Values.model.uri "" -}}
{{- if .Values.model.path -}}
{{- printf "/models/%s" .Values.model.path -}}
{{- else if or (hasSuffix "/" $uri) (regexMatch "^(hf://[^/]+|(gs|s3a?|az|azure|abfss?):/)/[^/]+$" $uri) -}}
/models
{{- else if $uri -}}
{{- printf "/models/%s" (base $uri) -}}
{{- else -}}
/models/best.onnx
{{- end -}}
{{- end -}}

{{/* The server's variables, by name. What follows from other values cannot be set a second time. */}}
{{- define "model-serving.environment" -}}
{{- $computed := dict "MODEL_PATH" (include "model-serving.modelPath" .) -}}
{{- if .Values.admin.enabled -}}
{{- $_ := set $computed "ADMIN_PORT" (toString .Values.admin.port) -}}
{{- end -}}
{{- if .Values.gpu.enabled -}}
{{- $_ := set $computed "DEVICE" "cuda" -}}
{{- end -}}
{{- if .Values.apiKeys.existingSecret -}}
{{- $_ := set $computed "API_KEY_FILE" (printf "/secrets/%s" .Values.apiKeys.key) -}}
{{- end -}}
{{- $watch := .Values.model.watch -}}
{{- if not .Values.model.uri -}}
{{- $watch = $watch | default "30s" -}}
{{- end -}}
{{- if $watch -}}
{{- $_ := set $computed "WATCH_MODEL" $watch -}}
{{- end -}}
{{- range $name := concat (keys $computed) (list "ADMIN_PORT" "API_KEY_FILE" "WATCH_MODEL" "HOST" "PORT") -}}
{{- if hasKey $.Values.settings $name -}}
{{- fail (printf "settings.%s would contradict what the chart sets: it follows from other values" $name) -}}
{{- end -}}
{{- end -}}
{{- $settings := dict -}}
{{- range $name, $value := .Values.settings -}}
{{- /* Numbers are floating ones here, which are written as 1e+06 from a million on. */ -}}
{{- $text := kindIs "float64" $value | ternary (int64 $value | toString) (toString $value) -}}
{{- if ne $text "" -}}
{{- $_ := set $settings $name $text -}}
{{- end -}}
{{- end -}}
{{- toYaml (merge $settings $computed) -}}
{{- end -}}

{{/* A container's resources, with the disk that a fetched model takes. */}}
{{- define "model-serving.withDisk" -}}
{{- $values := (index . 0).Values -}}
{{- $resources := deepCopy (index . 1) -}}
{{- if and $values.model.uri $values.model.fetch.ephemeralStorage -}}
{{- range list "requests" "limits" -}}
{{- $_ := set $resources . (merge (dict "ephemeral-storage" $values.model.fetch.ephemeralStorage) (get $resources . | default dict)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* A time of the server's settings in whole milliseconds, so that times can be compared; its name says what is wrong. */}}
{{- define "model-serving.milliseconds" -}}
{{- $name := index . 0 -}}
{{- $text := index . 1 | toString -}}
{{- if not (regexMatch "^[0-9]+(ms|s|m|h)$" $text) -}}
{{- fail (printf "settings.%s: write %s in whole ms, s, m or h, such as 15s, so that it can be compared with terminationGracePeriodSeconds" $name $text) -}}
{{- end -}}
{{- $factors := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 -}}
{{- mul (regexFind "^[0-9]+" $text) (get $factors (regexFind "[a-z]+$" $text)) -}}
{{- end -}}

{{- define "model-serving.probePort" -}}
{{- ternary "admin" "http" .Values.admin.enabled -}}
{{- end -}}

{{/* What no schema can say of the values. */}}
{{- define "model-serving.check" -}}
{{- $sources := compact (list .Values.model.uri .Values.model.existingClaim .Values.model.configMap) -}}
{{- if ne (len $sources) 1 -}}
{{- fail "set exactly one of model.uri, model.existingClaim and model.configMap: where the model comes from" -}}
{{- end -}}
{{- if and .Values.model.sha256 (not .Values.model.uri) -}}
{{- fail "model.sha256 is checked while model.uri is fetched; no other source has it checked" -}}
{{- end -}}
{{- if and (hasPrefix "http://" .Values.model.uri) (not .Values.model.sha256) -}}
{{- fail "model.uri is without TLS, so that anybody on the way could change the model: use https, or set model.sha256" -}}
{{- end -}}
{{- if and (ne .Values.autoscaling.by "none") (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and .Values.gpu.enabled (ne .Values.gpu.resource "nvidia.com/gpu") (hasKey (merge (dict) .Values.gpu.nodeSelector .Values.nodeSelector) "cloud.google.com/gke-accelerator") -}}
{{- fail (printf "no node of GKE has %s: slices and shares are nvidia.com/gpu there, chosen by cloud.google.com/gke-gpu-partition-size or -sharing-strategy" .Values.gpu.resource) -}}
{{- end -}}
{{- $drain := 0 -}}
{{- range $name, $default := dict "DRAIN_DELAY" "0s" "DRAIN_TIMEOUT" "8s" -}}
{{- $text := index $.Values.settings $name | default $default -}}
{{- $drain = add $drain (include "model-serving.milliseconds" (list $name $text)) -}}
{{- end -}}
{{- if le (mul .Values.terminationGracePeriodSeconds 1000) (add (mul .Values.preStopSeconds 1000) $drain 1000) -}}
{{- fail (printf "terminationGracePeriodSeconds must be more than preStopSeconds, the drain (%v s) and 1 s together, or a pod is killed before it has drained" (divf $drain 1000)) -}}
{{- end -}}
{{- range $name, $_ := .Values.podLabels -}}
{{- if has $name (list "app" "app.kubernetes.io/name" "app.kubernetes.io/instance") -}}
{{- fail (printf "podLabels.%s is the chart's own: selectors and alerts find the pods by it" $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.admin.enabled (eq (int .Values.admin.port) 8000) -}}
{{- fail "admin.port is 8000, which is the main port" -}}
{{- end -}}
{{- $known := include "model-serving.environment" . | fromYaml -}}
{{- range .Values.extraEnv -}}
{{- if or (hasKey $known .name) (has .name (list "ADMIN_PORT" "API_KEY_FILE" "WATCH_MODEL" "HOST" "PORT")) -}}
{{- fail (printf "extraEnv: %s would contradict what the chart or settings set" .name) -}}
{{- end -}}
{{- if hasPrefix "DRAIN_" .name -}}
{{- fail (printf "extraEnv: %s is not compared with terminationGracePeriodSeconds; set it in settings" .name) -}}
{{- end -}}
{{- end -}}
{{- range .Values.model.fetch.env -}}
{{- if has .name (list "LOG_LEVEL" "MODEL_DIR" "MODEL_SHA256" "MODEL_URI") -}}
{{- fail (printf "model.fetch.env: %s would contradict what the chart sets" .name) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraArgs -}}
{{- if regexMatch "^--drain-(delay|timeout)" . -}}
{{- fail (printf "extraArgs: %s is not compared with terminationGracePeriodSeconds; set it in settings" .) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.route.enabled (not .Values.route.parentRefs) -}}
{{- fail "route.parentRefs is empty: name the gateway" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts is empty: name a host" -}}
{{- end -}}
{{- end -}}
