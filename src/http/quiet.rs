//! Which requests are probes and scrapes: they ask for no key, are answered when all places are taken, and their successes
//! are not worth a line in the log.
//!
//! Invariant: a prediction is none of them, whatever path a platform asks it to have.

use http::Method;

/// The paths of probes and metrics.
pub(super) struct QuietRoutes {
    paths: Vec<String>,
    /// Those that predictions are posted to as well.
    shared: Vec<String>,
}

impl QuietRoutes {
    /// Our own paths and `health` are quiet, other than for what is posted to `predict`.
    pub(super) fn new(health: &[String], predict: &[String]) -> Self {
        let own = ["/health", "/ready", "/ping", "/metrics"].map(str::to_owned);
        let paths: Vec<String> = own.into_iter().chain(health.iter().cloned()).collect();
        let is_quiet = |path: &&String| paths.contains(path);
        Self {
            shared: predict.iter().filter(is_quiet).cloned().collect(),
            paths,
        }
    }

    /// Whether `path` is one of them, by some method.
    pub(super) fn has(&self, path: &str) -> bool {
        self.paths.iter().any(|quiet| quiet == path)
    }

    /// Whether a request is a probe or a scrape, or as good as one since it will be refused.
    pub(super) fn are_asked(&self, method: &Method, path: &str) -> bool {
        let is_prediction = || {
            let mut shared = self.shared.iter();
            method == Method::POST && shared.any(|shared| shared == path)
        };
        self.has(path) && !is_prediction()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_posted_to_a_path_of_predictions_is_no_probe() {
        let [both, predict] = ["/both", "/guess"].map(str::to_owned);
        let routes = QuietRoutes::new(std::slice::from_ref(&both), &[both.clone(), predict]);
        for (method, path, quiet) in [
            (Method::GET, "/both", true),
            (Method::HEAD, "/both", true),
            (Method::POST, "/both", false),
            (Method::POST, "/health", true),
            (Method::GET, "/guess", false),
            (Method::POST, "/predict", false),
        ] {
            assert_eq!(routes.are_asked(&method, path), quiet, "{method} {path}");
        }
    }
}
