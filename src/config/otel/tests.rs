//! What each variable brings: spans, warnings, or nothing.

use std::ffi::OsString;

use super::*;

fn read(flag: Option<Endpoint>, variables: &[(&str, &str)]) -> (Option<TracesConfig>, Vec<String>) {
    let environment = |name: &str| {
        let mut variables = variables.iter();
        let found = variables.find(|(variable, _)| *variable == name);
        found.map(|(_, value)| OsString::from(value))
    };
    super::traces(&Platform(&environment), flag)
}

/// Where spans go by these variables, and how many warnings there are.
fn traces(flag: Option<&str>, variables: &[(&str, &str)]) -> (Option<String>, usize) {
    let flag = flag.map(|url| url.parse().unwrap());
    let (config, warnings) = read(flag, variables);
    (config.map(|it| it.endpoint.to_string()), warnings.len())
}

#[test]
fn what_opentelemetry_asks_for_is_served_or_one_warning() {
    const ENDPOINT: (&str, &str) = (OTLP_ENDPOINT, "http://collector:4318");
    let collector = Some("http://collector:4318/v1/traces".to_owned());
    assert_eq!(traces(None, &[]), (None, 0));
    assert_eq!(traces(None, &[(OTLP_ENDPOINT, "")]), (None, 0));
    assert_eq!(traces(None, &[ENDPOINT]), (collector.clone(), 0));
    for (name, value, sent, warnings) in [
        ("OTEL_SDK_DISABLED", "TRUE", false, 1),
        ("OTEL_SDK_DISABLED", "false", true, 0),
        ("OTEL_SDK_DISABLED", "1", true, 1),
        ("OTEL_TRACES_EXPORTER", "none", false, 0),
        ("OTEL_TRACES_EXPORTER", "OTLP", true, 0),
        ("OTEL_TRACES_EXPORTER", "zipkin", false, 1),
        ("OTEL_TRACES_EXPORTER", "console,otlp", true, 1),
        ("OTEL_TRACES_EXPORTER", "otlp,", true, 0),
        ("OTEL_SDK_DISABLED", "true\r", false, 1),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", false, 1),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", true, 0),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", false, 1),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "GZIP", true, 0),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "none", true, 0),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd", true, 1),
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "https://c:1",
            false,
            1,
        ),
        ("OTEL_TRACES_SAMPLER", "sometimes", true, 1),
        ("OTEL_TRACES_SAMPLER_ARG", "2", true, 1),
        ("OTEL_BSP_SCHEDULE_DELAY", "5s", true, 1),
    ] {
        let expected = (collector.clone().filter(|_| sent), warnings);
        assert_eq!(
            traces(None, &[ENDPOINT, (name, value)]),
            expected,
            "{name}={value}"
        );
    }
    for url in ["https://collector:4318", "collector:4318", "x y", "http://"] {
        assert_eq!(traces(None, &[(OTLP_ENDPOINT, url)]), (None, 1), "{url}");
    }
    let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:1/spans");
    assert_eq!(
        traces(None, &[ENDPOINT, own]),
        (Some("http://c:1/spans".to_owned()), 0)
    );
}

#[test]
fn the_flag_wins_over_the_variables_but_not_over_what_turns_traces_off() {
    let flag = Some("http://flag:4318/");
    let sent = Some("http://flag:4318/v1/traces".to_owned());
    for (name, value, expected) in [
        (OTLP_ENDPOINT, "https://x", (sent.clone(), 0)),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", (sent.clone(), 1)),
        ("OTEL_TRACES_EXPORTER", "none", (sent, 0)),
        ("OTEL_SDK_DISABLED", "true", (None, 1)),
    ] {
        assert_eq!(traces(flag, &[(name, value)]), expected, "{name}={value}");
    }
}

const SENT: (&str, &str) = (OTLP_ENDPOINT, "http://collector:4318");

#[test]
fn a_number_out_of_its_range_is_one_warning_and_the_default() {
    let default = read(None, &[SENT]).0.unwrap();
    for name in [
        "OTEL_BSP_MAX_QUEUE_SIZE",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
        "OTEL_BSP_SCHEDULE_DELAY",
        "OTEL_BSP_EXPORT_TIMEOUT",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        "OTEL_BSP_MAX_CONCURRENT_EXPORTS",
    ] {
        for value in [
            "0",
            "-1",
            "many",
            "5s",
            "1.5",
            " ",
            "1000000000",
            "99999999999",
            "18446744073709551615",
            "99999999999999999999999",
        ] {
            let (config, warnings) = read(None, &[SENT, (name, value)]);
            assert_eq!(config.as_ref(), Some(&default), "{name}={value}");
            assert_eq!(warnings.len(), 1, "{name}={value}: {warnings:?}");
            assert!(warnings[0].starts_with(name), "{warnings:?}");
            // Where nothing is sent, none of them matters.
            assert_eq!(read(None, &[(name, value)]), (None, Vec::new()));
        }
        assert_eq!(read(None, &[SENT, (name, "")]).1, Vec::<String>::new());
    }
}

#[test]
fn numbers_within_their_range_are_used() {
    let (config, warnings) = read(
        None,
        &[
            SENT,
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10000"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "7000"),
            ("OTEL_BSP_MAX_CONCURRENT_EXPORTS", "1"),
        ],
    );
    assert_eq!(warnings, Vec::<String>::new());
    let expected = TracesConfig {
        max_queue_size: 100,
        // No more than the queue holds.
        max_export_batch_size: 100,
        schedule_delay: Duration::from_millis(50),
        export_timeout: Duration::from_secs(7),
        ..TracesConfig::to(SENT.1.parse().unwrap())
    };
    assert_eq!(config, Some(expected));
    let more = ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "101");
    let (config, warnings) = read(None, &[SENT, ("OTEL_BSP_MAX_QUEUE_SIZE", "100"), more]);
    assert_eq!(config.unwrap().max_export_batch_size, 100);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

#[test]
fn what_is_asked_for_and_not_done_with_spans_is_one_warning() {
    for (name, value, warned) in [
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=Bearer%20s3cret",
            0,
        ),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1, b=2,", 0),
        ("OTEL_EXPORTER_OTLP_HEADERS", "s3cret", 1),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,s3cret,also s3cret", 1),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a b=s3cret", 1),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem", 1),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/key.pem", 1),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c=d", 0),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c", 1),
        ("OTEL_RESOURCE_ATTRIBUTES", "=b", 1),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "64", 0),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "all", 1),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "-1", 1),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "99999999999", 1),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "9", 1),
        ("OTEL_TRACES_SAMPLER_ARG", "-1", 1),
    ] {
        let (config, warnings) = read(None, &[SENT, (name, value)]);
        assert!(config.is_some(), "{name}={value}");
        assert_eq!(warnings.len(), warned, "{name}={value}: {warnings:?}");
        for warning in warnings {
            assert!(warning.starts_with(name), "{warning}");
            assert!(!warning.contains("s3cret"), "{warning}");
        }
        assert_eq!(read(None, &[(name, value)]), (None, Vec::new()));
    }
}

#[test]
fn what_asks_for_more_than_traces_is_one_warning_unless_all_is_off() {
    for (name, value, warned) in [
        ("OTEL_METRICS_EXPORTER", "otlp", 1),
        ("OTEL_METRICS_EXPORTER", "none", 0),
        ("OTEL_METRICS_EXPORTER", "Prometheus", 0),
        ("OTEL_LOGS_EXPORTER", "otlp", 1),
        ("OTEL_LOGS_EXPORTER", "console", 0),
        ("OTEL_PROPAGATORS", "tracecontext, baggage", 0),
        ("OTEL_PROPAGATORS", "tracecontext,b3", 1),
        ("OTEL_PROPAGATORS", "", 0),
        ("OTEL_CONFIG_FILE", "/otel.yaml", 1),
    ] {
        let (_, warnings) = read(None, &[(name, value)]);
        assert_eq!(warnings.len(), warned, "{name}={value}: {warnings:?}");
        assert!(warnings.iter().all(|it| it.starts_with(name)));
        let off = ("OTEL_SDK_DISABLED", "true");
        assert_eq!(read(None, &[off, (name, value)]), (None, Vec::new()));
    }
}

#[test]
fn a_password_in_an_endpoint_is_one_warning_that_does_not_show_it() {
    for name in [OTLP_ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] {
        let (config, warnings) = read(None, &[(name, "http://me:s3cret@collector:4318")]);
        assert_eq!(config, None);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(!warnings[0].contains("s3cret"), "{warnings:?}");
    }
}
