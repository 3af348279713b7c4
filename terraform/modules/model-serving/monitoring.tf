# What wakes somebody: slow, failing, or not there.

locals {
  service_filters = {
    for variant, service in local.services :
    variant => "resource.type = \"cloud_run_revision\" AND resource.labels.service_name = \"${service.name}\""
  }
  channels = [for channel in google_monitoring_notification_channel.email : channel.id]
}

resource "google_monitoring_notification_channel" "email" {
  for_each = var.alert_emails

  project      = var.project
  display_name = each.key
  type         = "email"
  labels       = { email_address = each.key }

  depends_on = [google_project_service.needed]
}

resource "google_monitoring_alert_policy" "latency" {
  for_each = local.services

  project               = var.project
  display_name          = "${each.value.name}: p99 latency above ${var.latency_objective_ms} ms"
  combiner              = "OR"
  notification_channels = local.channels
  user_labels           = local.labels

  conditions {
    display_name = "p99 latency"

    condition_threshold {
      filter          = "${local.service_filters[each.key]} AND metric.type = \"run.googleapis.com/request_latencies\""
      comparison      = "COMPARISON_GT"
      threshold_value = var.latency_objective_ms
      duration        = "600s"

      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = "ALIGN_DELTA"
        cross_series_reducer = "REDUCE_PERCENTILE_99"
      }
    }
  }

  depends_on = [google_project_service.needed]
}

resource "google_monitoring_alert_policy" "errors" {
  for_each = local.services

  project               = var.project
  display_name          = "${each.value.name}: more than 1 % of requests fail"
  combiner              = "OR"
  notification_channels = local.channels
  user_labels           = local.labels

  conditions {
    display_name = "share of 5xx"

    condition_threshold {
      filter             = "${local.service_filters[each.key]} AND metric.type = \"run.googleapis.com/request_count\" AND metric.labels.response_code_class = \"5xx\""
      denominator_filter = "${local.service_filters[each.key]} AND metric.type = \"run.googleapis.com/request_count\""
      comparison         = "COMPARISON_GT"
      threshold_value    = 0.01
      duration           = "300s"

      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = "ALIGN_RATE"
        cross_series_reducer = "REDUCE_SUM"
      }

      denominator_aggregations {
        alignment_period     = "60s"
        per_series_aligner   = "ALIGN_RATE"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  depends_on = [google_project_service.needed]
}

resource "google_monitoring_alert_policy" "no_instance" {
  for_each = local.awake

  project               = var.project
  display_name          = "${each.value.name}: no instance runs"
  combiner              = "OR"
  notification_channels = local.channels
  user_labels           = local.labels

  conditions {
    display_name = "instances are missing"

    condition_absent {
      filter   = "${local.service_filters[each.key]} AND metric.type = \"run.googleapis.com/container/instance_count\""
      duration = "300s"

      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = "ALIGN_MAX"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }
}

# From outside, as Monitoring's own identity, so that it works whether or not the service is public. A service that may
# have no instance would be kept awake by it.
resource "google_monitoring_uptime_check_config" "health" {
  for_each = local.awake

  project      = var.project
  display_name = each.value.name
  timeout      = "10s"
  period       = "60s"

  http_check {
    path         = "/health"
    port         = 443
    use_ssl      = true
    validate_ssl = true

    service_agent_authentication {
      type = "OIDC_TOKEN"
    }
  }

  monitored_resource {
    type = "uptime_url"
    labels = {
      project_id = var.project
      host       = trimprefix(google_cloud_run_v2_service.this[each.key].uri, "https://")
    }
  }
}

resource "google_monitoring_alert_policy" "unreachable" {
  for_each = local.awake

  project               = var.project
  display_name          = "${each.value.name}: cannot be reached from outside"
  combiner              = "OR"
  notification_channels = local.channels
  user_labels           = local.labels

  conditions {
    display_name = "the uptime check fails from more than one place"

    condition_threshold {
      filter          = "resource.type = \"uptime_url\" AND metric.type = \"monitoring.googleapis.com/uptime_check/check_passed\" AND metric.labels.check_id = \"${google_monitoring_uptime_check_config.health[each.key].uptime_check_id}\""
      comparison      = "COMPARISON_GT"
      threshold_value = 1
      duration        = "120s"

      aggregations {
        alignment_period     = "120s"
        per_series_aligner   = "ALIGN_NEXT_OLDER"
        cross_series_reducer = "REDUCE_COUNT_FALSE"
      }
    }
  }
}

resource "google_billing_budget" "this" {
  count = var.budget == null ? 0 : 1

  billing_account = var.budget.billing_account
  display_name    = local.name

  budget_filter {
    projects = ["projects/${data.google_project.this.number}"]
  }

  amount {
    specified_amount {
      units = tostring(var.budget.amount)
    }
  }

  dynamic "threshold_rules" {
    for_each = [0.5, 0.9, 1.0]
    content {
      threshold_percent = threshold_rules.value
    }
  }

  # Beside the administrators of the billing account, who are told anyway. A budget takes five of them.
  dynamic "all_updates_rule" {
    for_each = length(var.alert_emails) == 0 ? [] : [slice(local.channels, 0, min(5, length(var.alert_emails)))]
    content {
      monitoring_notification_channels = all_updates_rule.value
    }
  }

  # Its interface asks which project pays for the call, which the provider says with user_project_override.
  depends_on = [google_project_service.needed]
}
