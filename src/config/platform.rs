//! The variables of hosting platforms and of OpenTelemetry, which are no flags of ours.
//!
//! Invariant: what names where to listen must be right. Anything else of theirs that cannot be served is a warning, since
//! whoever sets it for a whole fleet does not think of this program.

use std::ffi::OsString;

use super::complaint::{Setting, SettingError};
use super::values;
use crate::http::{self, Purpose};
use crate::telemetry::collector::Endpoint;

/// What a flag of ours is called, too; OpenTelemetry's rules for it differ from ours.
pub(super) const OTLP_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Where Vertex AI has a server listen.
pub(super) const PORT: &str = "AIP_HTTP_PORT";

/// The environment that the process was given.
pub(super) struct Platform<'a>(pub(super) &'a dyn Fn(&str) -> Option<OsString>);

/// The routes that Vertex AI asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Routes {
    pub(super) health: Option<String>,
    pub(super) predict: Option<String>,
    pub(super) warnings: Vec<String>,
}

impl Platform<'_> {
    /// A variable; one that is empty is as if it were not there.
    fn read(&self, name: &'static str) -> Result<Option<String>, SettingError> {
        let value = (self.0)(name).filter(|value| !value.is_empty());
        value
            .map(|value| {
                value.into_string().map_err(|value| SettingError {
                    setting: Setting::Variable(name),
                    reason: format!("'{}' is not UTF-8 text", value.to_string_lossy()),
                })
            })
            .transpose()
    }

    /// The port that Vertex AI names.
    pub(super) fn port(&self) -> Result<Option<u16>, SettingError> {
        let port = self.read(PORT)?.map(|text| values::port(&text));
        port.transpose().map_err(|reason| SettingError {
            setting: Setting::Variable(PORT),
            reason,
        })
    }

    /// The routes that Vertex AI names, neither of which takes the place of a route that means something else. They may be
    /// one path, since one is read and the other posted to.
    pub(super) fn routes(&self) -> Result<Routes, SettingError> {
        const HEALTH: &str = "AIP_HEALTH_ROUTE";
        const PREDICT: &str = "AIP_PREDICT_ROUTE";
        let mut routes = Routes {
            health: self.route(HEALTH, Purpose::Ready, "/v1/ready")?,
            predict: self.route(PREDICT, Purpose::Predict, "/v1/predict")?,
            warnings: Vec::new(),
        };
        if let Some(route) = &routes.health
            && http::purpose(route).is_some_and(|(_, purpose)| purpose == Purpose::Live)
        {
            routes.warnings.push(format!(
                "{HEALTH}={route} answers 200 while models are still being loaded; let it be /ready, so that requests come when they can be answered"
            ));
        }
        Ok(routes)
    }

    fn route(
        &self,
        name: &'static str,
        purpose: Purpose,
        example: &str,
    ) -> Result<Option<String>, SettingError> {
        let wrong = |reason: String| SettingError {
            setting: Setting::Variable(name),
            reason,
        };
        let Some(route) = self.read(name)? else {
            return Ok(None);
        };
        if !is_plain_route(&route) {
            return Err(wrong(format!(
                "'{route}' is not a plain route; write a path, for example {example}"
            )));
        }
        match http::purpose(&route) {
            None => Ok(Some(route)),
            // It is there already, and stays what it is: the route of the model that it names.
            Some((_, Purpose::PredictNamed)) if purpose == Purpose::Predict => Ok(None),
            Some((_, other)) if other == purpose => Ok(Some(route)),
            Some((_, Purpose::Live)) if purpose == Purpose::Ready => Ok(Some(route)),
            Some((pattern, other)) => Err(wrong(format!(
                "'{route}' is the route {pattern} already, for {}; choose another one, for example {example}",
                other.words()
            ))),
        }
    }

    /// Where spans are sent, by the flag and OpenTelemetry's variables, and what of these cannot be served.
    pub(super) fn traces(&self, flag: Option<Endpoint>) -> (Option<Endpoint>, Vec<String>) {
        let mut warnings = Vec::new();
        let mut read = |name: &'static str| match self.read(name) {
            Ok(value) => value,
            Err(error) => {
                warnings.push(format!("{name}: {}; it is not used", error.reason));
                None
            }
        };
        let disabled = read("OTEL_SDK_DISABLED");
        let exporter = read("OTEL_TRACES_EXPORTER");
        let [protocol, compression, endpoint] = [
            [
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
                "OTEL_EXPORTER_OTLP_PROTOCOL",
            ],
            [
                "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
                "OTEL_EXPORTER_OTLP_COMPRESSION",
            ],
            ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", OTLP_ENDPOINT],
        ]
        .map(|names| {
            names
                .into_iter()
                .find_map(|name| read(name).map(|value| (name, value)))
        });
        let wanted = flag.is_some() || endpoint.is_some();
        let by_flag = flag.is_some();

        match disabled.as_deref().map(str::to_ascii_lowercase).as_deref() {
            Some("true") => {
                if wanted {
                    warnings.push("OTEL_SDK_DISABLED=true: no traces are sent".to_owned());
                }
                return (None, warnings);
            }
            None | Some("false") => {}
            Some(other) => warnings.push(format!(
                "OTEL_SDK_DISABLED='{other}' is neither true nor false; it is taken as false"
            )),
        }
        // What cannot be served by these means no traces, unless our own flag asks for them.
        let mut refusals = Vec::new();
        if let Some(exporter) = exporter {
            let known = exporter.to_ascii_lowercase();
            let mut names = known.split(',').map(str::trim);
            if known.trim() == "none" {
                if !by_flag {
                    return (None, warnings);
                }
            } else if !names.any(|name| name == "otlp") {
                refusals.push(format!(
                    "OTEL_TRACES_EXPORTER='{exporter}' is not served, only otlp and none are"
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
            warnings.push(if by_flag {
                format!("{refusal}; --otlp-endpoint sends them as http/protobuf")
            } else {
                format!("{refusal}; no traces are sent")
            });
        }
        if unserved && !by_flag {
            return (None, warnings);
        }
        let sent_to = match (flag, endpoint) {
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
                        warnings.push(format!("{name}: {reason}; no traces are sent"));
                    })
                    .ok()
            }
        };
        if sent_to.is_some() {
            if let Some((name, compression)) = compression
                && !compression.trim().eq_ignore_ascii_case("none")
            {
                warnings.push(format!(
                    "{name}='{compression}' is not served; spans are sent without compression"
                ));
            }
            warnings.extend(self.sdk_warnings());
        }
        (sent_to, warnings)
    }

    /// Variables that the SDK reads itself, and whose default it takes without a word when they are ill-formed.
    fn sdk_warnings(&self) -> Vec<String> {
        const SAMPLERS: [&str; 6] = [
            "always_on",
            "always_off",
            "traceidratio",
            "parentbased_always_on",
            "parentbased_always_off",
            "parentbased_traceidratio",
        ];
        let read = |name| self.read(name).ok().flatten();
        let mut warnings = Vec::new();
        let sampler = read("OTEL_TRACES_SAMPLER");
        let by_ratio = sampler
            .as_deref()
            .is_some_and(|sampler| sampler.ends_with("traceidratio"));
        if let Some(sampler) = sampler
            && !SAMPLERS.contains(&sampler.as_str())
        {
            warnings.push(format!(
                "OTEL_TRACES_SAMPLER='{sampler}' is not known, so that parentbased_always_on is used; known are {}",
                SAMPLERS.join(", ")
            ));
        }
        if by_ratio && let Some(text) = read("OTEL_TRACES_SAMPLER_ARG") {
            let used = match text.parse::<f64>() {
                Ok(ratio) if (0.0..=1.0).contains(&ratio) => None,
                Ok(_) => Some("the nearest of these is used"),
                Err(_) => Some("1 is used"),
            };
            warnings.extend(used.map(|used| {
                format!("OTEL_TRACES_SAMPLER_ARG='{text}' is not a number from 0 to 1; {used}")
            }));
        }
        for name in [
            "OTEL_BSP_SCHEDULE_DELAY",
            "OTEL_BSP_MAX_QUEUE_SIZE",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            "OTEL_BSP_EXPORT_TIMEOUT",
        ] {
            if let Some(text) = read(name)
                && text.parse::<u64>().is_err()
            {
                warnings.push(format!(
                    "{name}='{text}' is not a whole number; OpenTelemetry's default is used"
                ));
            }
        }
        warnings
    }
}

/// Whether `route` is a path without the characters that mean something to a router or a URL.
fn is_plain_route(route: &str) -> bool {
    let plain = |character: char| {
        character.is_ascii_alphanumeric() || matches!(character, '/' | '-' | '_' | '.' | ':' | '~')
    };
    route.len() > 1 && route.starts_with('/') && route.chars().all(plain) && !route.contains("/:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(variables: &[(&str, &str)], ask: impl Fn(Platform<'_>) -> T) -> T {
        let environment = |name: &str| {
            let mut variables = variables.iter();
            let found = variables.find(|(variable, _)| *variable == name);
            found.map(|(_, value)| OsString::from(value))
        };
        ask(Platform(&environment))
    }

    #[test]
    fn a_route_of_a_platform_takes_no_other_routes_place() {
        for (health, predict, part) in [
            ("", "/metrics", "is the route /metrics already"),
            ("", "/health", "is the route /health already"),
            ("", "/ready", "is the route /ready already"),
            ("", "/ping", "is the route /ping already"),
            (
                "",
                "/v2/models/m",
                "is the route /v2/models/{model} already",
            ),
            ("/predict", "", "is the route /predict already"),
            ("/invocations", "", "is the route /invocations already"),
            ("/metrics", "", "is the route /metrics already"),
            (
                "/v1/models/m:predict",
                "",
                "is the route /v1/models/{model}:predict already",
            ),
            ("/", "", "not a plain route"),
            ("", "predict", "not a plain route"),
        ] {
            let routes = with(
                &[("AIP_HEALTH_ROUTE", health), ("AIP_PREDICT_ROUTE", predict)],
                |platform| platform.routes(),
            );
            let error = routes.unwrap_err();
            assert!(error.reason.contains(part), "{health} {predict}: {error:?}");
        }
    }

    #[test]
    fn routes_that_can_be_served_are_taken() {
        for (health, predict) in [
            ("/ready", "/predict"),
            ("/ping", "/invocations"),
            ("/v1/endpoints/1/health", "/v1/endpoints/1:predict"),
            ("/v1/models/m", "/v1/models/m"),
            ("/same", "/same"),
            ("", ""),
        ] {
            let routes = with(
                &[("AIP_HEALTH_ROUTE", health), ("AIP_PREDICT_ROUTE", predict)],
                |platform| platform.routes(),
            );
            let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            let expected = Routes {
                health: given(health),
                predict: given(predict),
                warnings: Vec::new(),
            };
            assert_eq!(routes, Ok(expected));
        }
        // The route is there without being asked for, and is the one of the model that it names.
        let named = [
            ("AIP_HEALTH_ROUTE", "/v1/models/m"),
            ("AIP_PREDICT_ROUTE", "/v1/models/m:predict"),
        ];
        let routes = with(&named, |it| it.routes()).unwrap();
        assert_eq!(routes.health.as_deref(), Some("/v1/models/m"));
        assert_eq!(routes.predict, None);
        // Many examples of Vertex AI ask for it, so it is taken, and what is wrong with it is told.
        let routes = with(&[("AIP_HEALTH_ROUTE", "/health")], |it| it.routes()).unwrap();
        assert_eq!(routes.health.as_deref(), Some("/health"));
        assert_eq!(routes.warnings.len(), 1);
    }

    /// Where spans go by these variables, and how many warnings there are.
    fn traces(flag: Option<&str>, variables: &[(&str, &str)]) -> (Option<String>, usize) {
        let flag = flag.map(|url| url.parse().unwrap());
        let (endpoint, warnings) = with(variables, |platform| platform.traces(flag.clone()));
        (endpoint.map(|it| it.to_string()), warnings.len())
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
            ("OTEL_TRACES_EXPORTER", "console,otlp", true, 0),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", false, 1),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", true, 0),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", false, 1),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", true, 1),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "none", true, 0),
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "https://c:1",
                false,
                1,
            ),
            ("OTEL_TRACES_SAMPLER", "sometimes", true, 1),
            ("OTEL_TRACES_SAMPLER_ARG", "read by ratios only", true, 0),
            ("OTEL_BSP_SCHEDULE_DELAY", "5s", true, 1),
        ] {
            let expected = (collector.clone().filter(|_| sent), warnings);
            assert_eq!(
                traces(None, &[ENDPOINT, (name, value)]),
                expected,
                "{name}={value}"
            );
        }
        for (ratio, warnings) in [("0.5", 0), ("2", 1), ("half", 1)] {
            let ratio = ("OTEL_TRACES_SAMPLER_ARG", ratio);
            let by_ratio = ("OTEL_TRACES_SAMPLER", "traceidratio");
            let told = traces(None, &[ENDPOINT, by_ratio, ratio]);
            assert_eq!(told, (collector.clone(), warnings), "{ratio:?}");
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
}
