//! The variables of OpenTelemetry, which are no flags of ours.
//!
//! Invariant: whoever sets them for a whole fleet does not think of this program, so what cannot be served of them is one
//! warning that names the variable and says what is done instead, and never ends the start. The library gets no number
//! from the environment that was not looked at here.

#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::platform::Platform;
use crate::telemetry::collector::{self, Endpoint};
use crate::telemetry::traces::TracesConfig;

/// What a flag of ours is called, too; OpenTelemetry's rules for it differ from ours.
pub(super) const OTLP_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// The most spans that may wait to be sent; room for all of them is made at the start, about half a kilobyte each.
const MAX_QUEUE: u64 = 100_000;

/// The longest time between two exports, in milliseconds: a day.
const MAX_DELAY: u64 = 86_400_000;

/// The longest time that an export may be given, in milliseconds: ten minutes.
const MAX_TIMEOUT: u64 = 600_000;

/// Where spans are sent and how, by the flag and OpenTelemetry's variables, and what of these cannot be served.
pub(super) fn traces(
    platform: &Platform<'_>,
    flag: Option<Endpoint>,
) -> (Option<TracesConfig>, Vec<String>) {
    let mut variables = Variables {
        platform,
        warnings: Vec::new(),
    };
    let mut config = None;
    if !variables.disable_everything(flag.is_some()) {
        let endpoint = variables.endpoint(flag);
        config = endpoint.map(|endpoint| variables.exports(endpoint));
        variables.warn_of_other_signals();
    }
    (config, variables.warnings)
}

/// Reads variables, and gathers what is to be said about them.
struct Variables<'a> {
    platform: &'a Platform<'a>,
    warnings: Vec<String>,
}

impl Variables<'_> {
    /// A variable; one that is empty is as if it were not there. What is said never shows a value that may be a secret.
    fn read(&mut self, name: &'static str) -> Option<String> {
        self.platform.read(name).unwrap_or_else(|_| {
            self.warn(name, "it is not UTF-8 text, and is not used");
            None
        })
    }

    fn warn(&mut self, name: &str, what: impl Display) {
        self.warnings.push(format!("{name}: {what}"));
    }

    /// A whole number in `range`, if the variable has one.
    fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> Option<u64> {
        let text = self.read(name)?;
        let number = text.trim().parse().ok();
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            self.warnings.push(format!(
                "{name}='{text}' is not a whole number from {least} to {most}; {default} is used"
            ));
        }
        number
    }

    /// Whether OpenTelemetry is off as a whole.
    fn disable_everything(&mut self, by_flag: bool) -> bool {
        const NAME: &str = "OTEL_SDK_DISABLED";
        let Some(text) = self.read(NAME) else {
            return false;
        };
        let text = text.trim();
        if text.eq_ignore_ascii_case("true") {
            let named = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", OTLP_ENDPOINT];
            if by_flag || named.into_iter().any(|name| self.read(name).is_some()) {
                self.warnings
                    .push("OTEL_SDK_DISABLED=true: no traces are sent".to_owned());
            }
            return true;
        }
        if !text.eq_ignore_ascii_case("false") {
            self.warnings.push(format!(
                "{NAME}='{text}' is neither true nor false; it is taken as false"
            ));
        }
        false
    }

    /// Where spans are sent, by the flag and OpenTelemetry's variables, and what of these cannot be served.
    fn endpoint(&mut self, flag: Option<Endpoint>) -> Option<Endpoint> {
        let exporter = self.read("OTEL_TRACES_EXPORTER");
        let [protocol, endpoint] = [
            [
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
                "OTEL_EXPORTER_OTLP_PROTOCOL",
            ],
            ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", OTLP_ENDPOINT],
        ]
        .map(|names| {
            names
                .into_iter()
                .find_map(|name| self.read(name).map(|value| (name, value)))
        });
        let by_flag = flag.is_some();

        // What cannot be served by these means no traces, unless our own flag asks for them.
        let mut refusals = Vec::new();
        if let Some(exporter) = exporter {
            let known = exporter.to_ascii_lowercase();
            let names = known
                .split(',')
                .map(str::trim)
                .filter(|name| !name.is_empty());
            let (ours, others): (Vec<_>, Vec<_>) = names.partition(|name| *name == "otlp");
            if known.trim() == "none" {
                if !by_flag {
                    return None;
                }
            } else if ours.is_empty() {
                refusals.push(format!(
                    "OTEL_TRACES_EXPORTER='{exporter}' is not served, only otlp and none are"
                ));
            } else if !others.is_empty() {
                self.warnings.push(format!(
                    "OTEL_TRACES_EXPORTER='{exporter}': of these only otlp is served"
                ));
            }
        }
        if let Some((name, protocol)) = protocol
            && !protocol.trim().eq_ignore_ascii_case("http/protobuf")
        {
            refusals.push(format!(
                "{name}='{protocol}' is not served, only http/protobuf is (port 4318 of most collectors)"
            ));
        }
        let unserved = !refusals.is_empty();
        for refusal in refusals {
            self.warnings.push(if by_flag {
                format!("{refusal}; --otlp-endpoint sends them as http/protobuf")
            } else {
                format!("{refusal}; no traces are sent")
            });
        }
        if unserved && !by_flag {
            return None;
        }
        match (flag, endpoint) {
            (Some(flag), _) => Some(flag),
            (None, None) => None,
            (None, Some((name, url))) => {
                let parsed = if name == OTLP_ENDPOINT {
                    url.parse()
                } else {
                    Endpoint::of_traces(&url)
                };
                parsed
                    .map_err(|reason| {
                        self.warnings
                            .push(format!("{name}: {reason}; no traces are sent"));
                    })
                    .ok()
            }
        }
    }

    /// How spans are sent there.
    fn exports(&mut self, endpoint: Endpoint) -> TracesConfig {
        let default = TracesConfig::to(endpoint);
        let size = |number: Option<u64>| number.and_then(|number| usize::try_from(number).ok());
        let queue = self.number(
            "OTEL_BSP_MAX_QUEUE_SIZE",
            1..=MAX_QUEUE,
            default.max_queue_size as u64,
        );
        let max_queue_size = size(queue).unwrap_or(default.max_queue_size);
        let default_batch = default.max_export_batch_size.min(max_queue_size);
        let batch = self.number(
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            1..=max_queue_size as u64,
            default_batch as u64,
        );
        let delay = self.number(
            "OTEL_BSP_SCHEDULE_DELAY",
            1..=MAX_DELAY,
            milliseconds(default.schedule_delay),
        );
        let config = TracesConfig {
            max_queue_size,
            max_export_batch_size: size(batch).unwrap_or(default_batch),
            schedule_delay: delay.map_or(default.schedule_delay, Duration::from_millis),
            export_timeout: self.export_timeout(),
            ..default
        };
        if let Some(text) = self.read("OTEL_BSP_MAX_CONCURRENT_EXPORTS")
            && text.trim() != "1"
        {
            self.warnings.push(format!(
                "OTEL_BSP_MAX_CONCURRENT_EXPORTS='{text}' is not served; one export is made at a time"
            ));
        }
        self.warn_of_sampling();
        self.warn_of_spans();
        self.warn_of_sending();
        config
    }

    /// The longest that one export may take: what is given for the exporter, within what is given for the queue.
    fn export_timeout(&mut self) -> Duration {
        let default = milliseconds(collector::TIMEOUT);
        let mut given = |name| self.number(name, 1..=MAX_TIMEOUT, default);
        let of_traces = given("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT");
        let of_all = given("OTEL_EXPORTER_OTLP_TIMEOUT");
        let of_queue = given("OTEL_BSP_EXPORT_TIMEOUT");
        let exporter = of_traces.or(of_all);
        let shorter = exporter.into_iter().chain(of_queue).min();
        Duration::from_millis(shorter.unwrap_or(default))
    }

    /// The library samples by these itself, and takes its default without a word when they are ill-formed.
    fn warn_of_sampling(&mut self) {
        const SAMPLERS: [&str; 6] = [
            "always_on",
            "always_off",
            "traceidratio",
            "parentbased_always_on",
            "parentbased_always_off",
            "parentbased_traceidratio",
        ];
        if let Some(sampler) = self.read("OTEL_TRACES_SAMPLER")
            && !SAMPLERS.contains(&sampler.as_str())
        {
            self.warnings.push(format!(
                "OTEL_TRACES_SAMPLER='{sampler}' is not known, so that parentbased_always_on is used; known are {}",
                SAMPLERS.join(", ")
            ));
        }
        if let Some(text) = self.read("OTEL_TRACES_SAMPLER_ARG") {
            let ratio = text.parse::<f64>();
            let used = match ratio {
                Ok(ratio) if (0.0..=1.0).contains(&ratio) => return,
                Ok(ratio) if ratio > 1.0 => "1",
                Ok(_) => "0",
                Err(_) => "1",
            };
            self.warnings.push(format!(
                "OTEL_TRACES_SAMPLER_ARG='{text}' is not a number from 0 to 1; {used} is used"
            ));
        }
    }

    /// What belongs to spans: the library reads it itself, and leaves out what is ill-formed.
    fn warn_of_spans(&mut self) {
        const MOST: u64 = u32::MAX as u64;
        const RESOURCE: &str = "OTEL_RESOURCE_ATTRIBUTES";
        for name in [
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_SPAN_EVENT_COUNT_LIMIT",
            "OTEL_SPAN_LINK_COUNT_LIMIT",
        ] {
            self.number(name, 0..=MOST, 128);
        }
        for name in [
            "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        ] {
            if let Some(text) = self.read(name) {
                self.warnings.push(format!(
                    "{name}='{text}' is not served; attributes are sent as they are"
                ));
            }
        }
        if let Some(text) = self.read(RESOURCE) {
            let is_pair = |entry: &str| {
                let pair = entry.split_once('=');
                pair.is_some_and(|(name, _)| !name.trim().is_empty())
            };
            if let Some(wrong) = text.split_terminator(',').find(|entry| !is_pair(entry)) {
                let told = format!("'{wrong}' is not NAME=VALUE, and is not sent");
                self.warn(RESOURCE, told);
            }
        }
    }

    /// What belongs to the connection to the collector: the library reads it itself.
    fn warn_of_sending(&mut self) {
        for name in [
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
            "OTEL_EXPORTER_OTLP_COMPRESSION",
        ] {
            if let Some(text) = self.read(name)
                && !["gzip", "none"].contains(&text.trim().to_ascii_lowercase().as_str())
            {
                self.warnings.push(format!(
                    "{name}='{text}' is neither gzip nor none, and is not used"
                ));
            }
        }
        for name in [
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ] {
            // Headers are where tokens stand, so no value is shown.
            if let Some(text) = self.read(name)
                && let Some(wrong) = text.split_terminator(',').position(|it| !is_header(it))
            {
                let told = format!(
                    "entry {} is not NAME=VALUE as a header has them, and is not sent",
                    wrong + 1
                );
                self.warn(name, told);
            }
        }
        for name in [
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
            "OTEL_EXPORTER_OTLP_CLIENT_KEY",
        ] {
            if self.read(name).is_some() {
                self.warn(name, "it is not used, since spans are sent without TLS");
            }
        }
    }

    /// What asks for more than traces.
    fn warn_of_other_signals(&mut self) {
        for (name, quiet, instead) in [
            (
                "OTEL_METRICS_EXPORTER",
                &["none", "prometheus"][..],
                "metrics are had at /metrics",
            ),
            (
                "OTEL_LOGS_EXPORTER",
                &["none", "console"],
                "the log goes to standard output",
            ),
            (
                "OTEL_PROPAGATORS",
                &["tracecontext", "baggage"],
                "the header traceparent (tracecontext) is read",
            ),
        ] {
            if let Some(text) = self.read(name) {
                let words = text.to_ascii_lowercase();
                let mut words = words.split(',').map(str::trim);
                if let Some(wrong) = words.find(|word| !quiet.contains(word)) {
                    let told = format!("'{wrong}' is not served; {instead}");
                    self.warn(name, told);
                }
            }
        }
        for name in ["OTEL_CONFIG_FILE", "OTEL_EXPERIMENTAL_CONFIG_FILE"] {
            if self.read(name).is_some() {
                self.warn(
                    name,
                    "the file is not read; flags and the other variables are",
                );
            }
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whether the library makes a header of this entry of a list.
fn is_header(entry: &str) -> bool {
    entry.split_once('=').is_some_and(|(name, value)| {
        let (name, value) = (name.trim(), value.trim());
        !value.is_empty()
            && HeaderName::try_from(name).is_ok()
            && HeaderValue::try_from(value).is_ok()
    })
}
