//! The variables of hosting platforms, which are no flags of ours.
//!
//! Invariant: what names where to listen must be right.

use std::ffi::OsString;

use super::complaint::{Setting, SettingError};
use super::values;
use crate::http::{self, Purpose};

/// Where Vertex AI has a server listen.
pub(super) const PORT: &str = "AIP_HTTP_PORT";

/// The root of the Open Inference Protocol's routes, also of those that are not served yet.
const RESERVED: &str = "/v2";

/// The environment that the process was given.
pub(super) struct Platform<'a>(pub(super) &'a dyn Fn(&str) -> Option<OsString>);

/// The routes that Vertex AI asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Routes {
    pub(super) health: Option<String>,
    pub(super) predict: Option<String>,
    /// The model that the route of predictions names, if it is the route of one model.
    pub(super) model: Option<String>,
    pub(super) warnings: Vec<String>,
}

impl Platform<'_> {
    /// A variable; one that is empty is as if it were not there.
    pub(super) fn read(&self, name: &'static str) -> Result<Option<String>, SettingError> {
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
    ///
    /// No URI is longer than `longest` bytes.
    pub(super) fn routes(&self, longest: usize) -> Result<Routes, SettingError> {
        const HEALTH: &str = "AIP_HEALTH_ROUTE";
        const PREDICT: &str = "AIP_PREDICT_ROUTE";
        let mut routes = Routes {
            health: self.route(HEALTH, Purpose::Ready, "/v1/ready", longest)?,
            predict: self.route(PREDICT, Purpose::Predict, "/v1/predict", longest)?,
            model: None,
            warnings: Vec::new(),
        };
        if routes.predict.is_none() {
            let route = self.read(PREDICT)?;
            routes.model = route.as_deref().and_then(http::model_of).map(str::to_owned);
        }
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
        longest: usize,
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
        if route.len() > longest {
            return Err(wrong(format!(
                "it is {} bytes long, more than --max-uri-size (MAX_URI_SIZE), which is {longest}B, so that every request would be refused; shorten it, or raise the other one",
                route.len()
            )));
        }
        match http::purpose(&route) {
            None if route == RESERVED || route.starts_with(&format!("{RESERVED}/")) => {
                Err(wrong(format!(
                    "'{route}' is kept for the Open Inference Protocol, as {RESERVED} and all below it are; choose another one, for example {example}"
                )))
            }
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
}

/// Whether `route` is a path without the characters that mean something to a router or a URL.
fn is_plain_route(route: &str) -> bool {
    let plain = |character: char| {
        character.is_ascii_alphanumeric() || matches!(character, '/' | '-' | '_' | '.' | ':' | '~')
    };
    // Clients and proxies take such parts out of a path before they ask for it; one that ends with a slash stays.
    let mut parts = route.split('/').skip(1).peekable();
    let mut vanishes = false;
    while let Some(part) = parts.next() {
        vanishes |= matches!(part, "." | "..") || (part.is_empty() && parts.peek().is_some());
    }
    route.len() > 1
        && route.starts_with('/')
        && route.chars().all(plain)
        && !route.contains("/:")
        && !vanishes
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
            ("", "/v2", "is kept for the Open Inference Protocol"),
            ("", "/v2/models/m/infer", "is kept for the Open"),
            ("", "/v2/repository/index", "is kept for the Open"),
            ("/v2/health/live", "", "is kept for the Open"),
            ("/v2/health/ready", "", "is kept for the Open"),
            ("/v2/", "", "is kept for the Open"),
            ("/predict", "", "is the route /predict already"),
            ("/invocations", "", "is the route /invocations already"),
            ("/metrics", "", "is the route /metrics already"),
            (
                "/v1/models/m:predict",
                "",
                "is the route /v1/models/{model}:predict already",
            ),
            ("/", "", "not a plain route"),
            ("//", "", "not a plain route"),
            ("", &"/long".repeat(21), "105 bytes long"),
            ("", "/a//b", "not a plain route"),
            ("", "/predict/../metrics", "not a plain route"),
            ("/./ready", "", "not a plain route"),
            ("", "predict", "not a plain route"),
        ] {
            let routes = with(
                &[("AIP_HEALTH_ROUTE", health), ("AIP_PREDICT_ROUTE", predict)],
                |platform| platform.routes(100),
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
            ("/v2x", "/v1/v2"),
            ("/up/", "/a..b/..c"),
            ("", ""),
        ] {
            let routes = with(
                &[("AIP_HEALTH_ROUTE", health), ("AIP_PREDICT_ROUTE", predict)],
                |platform| platform.routes(100),
            );
            let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            let expected = Routes {
                health: given(health),
                predict: given(predict),
                model: None,
                warnings: Vec::new(),
            };
            assert_eq!(routes, Ok(expected));
        }
        // The route is there without being asked for, and is the one of the model that it names.
        let named = [
            ("AIP_HEALTH_ROUTE", "/v1/models/m"),
            ("AIP_PREDICT_ROUTE", "/v1/models/m:predict"),
        ];
        let routes = with(&named, |it| it.routes(100)).unwrap();
        assert_eq!(routes.health.as_deref(), Some("/v1/models/m"));
        assert_eq!(routes.predict, None);
        assert_eq!(routes.model.as_deref(), Some("m"));
        // Many examples of Vertex AI ask for it, so it is taken, and what is wrong with it is told.
        let routes = with(&[("AIP_HEALTH_ROUTE", "/health")], |it| it.routes(100)).unwrap();
        assert_eq!(routes.health.as_deref(), Some("/health"));
        assert_eq!(routes.warnings.len(), 1);
    }
}
