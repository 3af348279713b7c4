//! A real Prometheus scrapes the real server under load: every rule has a value, every panel has data, and the
//! latency that autoscalers see is the one that clients see.
//!
//! The GPUs are a fake of the driver's library, since there need be none here.
//!
//! `make monitoring-tools` fetches Prometheus; without it these tests say that they were skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use testing::nvml::FakeNvml;
use testing::{Request, fixture, repository, skipped};

/// What the targets of one deployment are called.
struct Deployment {
    job: &'static str,
    /// Those that the Prometheus operator adds.
    pod: Option<[&'static str; 2]>,
}

/// By Compose; by the operator, whose `PodMonitor` names the label of the job; and by one that does not name it, with a
/// pod whose name means something else in a regular expression.
const DEPLOYMENTS: [Deployment; 3] = [
    Deployment {
        job: "model-serving",
        pod: None,
    },
    Deployment {
        job: "model-serving",
        pod: Some(["default", "server"]),
    },
    Deployment {
        job: "models/model-serving",
        pod: Some(["models", "server-1.a"]),
    },
];

impl Deployment {
    fn labels(&self) -> String {
        let job = format!("job: {}", self.job);
        match self.pod {
            None => job,
            Some([namespace, pod]) => {
                format!(
                    "{job}, namespace: {namespace}, pod: {pod}, container: api, endpoint: admin"
                )
            }
        }
    }

    /// What Grafana puts in the place of the variables when this deployment is chosen, or all of what is not its own.
    fn chosen(&self) -> [(&'static str, String); 3] {
        let [namespace, pod] = match self.pod {
            None => [".*".to_owned(), ".*".to_owned()],
            Some(names) => names.map(escaped),
        };
        [
            ("namespace", namespace),
            ("job", escaped(self.job)),
            ("pod", pod),
        ]
    }
}

/// A value of a variable as Grafana writes it into a regular expression, inside of a query's string.
fn escaped(value: &str) -> String {
    let mut text = String::new();
    for character in value.chars() {
        if r"\^$*+?.()|[]{}".contains(character) {
            text.push_str(r"\\");
        }
        text.push(character);
    }
    text
}

/// A query with the dashboards' variables filled in; of models and GPUs, all.
fn filled(query: &str, chosen: &[(&str, String)]) -> String {
    let mut query = query
        .replace("$__rate_interval", "20s")
        .replace("$model", ".*")
        .replace("$gpu", ".*");
    for (variable, value) in chosen {
        query = query.replace(&format!("${variable}"), value);
    }
    assert!(!query.contains('$'), "{query} has another variable");
    query
}

/// A running Prometheus. Dropping it ends it.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn program() -> Option<PathBuf> {
        let program = repository(".tools/prometheus/prometheus");
        program.exists().then_some(program)
    }

    /// Starts it with our rules, and with `target` as each of `DEPLOYMENTS`.
    fn start(program: &PathBuf, target: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{rules}']\n\
             scrape_configs:\n",
            rules = repository("monitoring/rules/*.yml").display(),
        );
        for (number, deployment) in DEPLOYMENTS.iter().enumerate() {
            let labels = deployment.labels();
            writeln!(
                config,
                "- job_name: 'scrapes/{number}'\n\
                 \x20 static_configs: [{{targets: ['{target}'], labels: {{{labels}}}}}]",
            )
            .unwrap();
        }
        let path = folder.path().join("prometheus.yml");
        std::fs::write(&path, config).unwrap();
        // It does not tell which port it was given, so it gets one that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let child = Command::new(program)
            .arg(format!("--config.file={}", path.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut prometheus = Self {
            child,
            address,
            _folder: folder,
        };
        testing::eventually("Prometheus is ready", || {
            assert_eq!(prometheus.child.try_wait().unwrap(), None);
            prometheus
                .ask("/-/ready")
                .is_ok_and(|(status, _)| status == 200)
        });
        prometheus
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(path).unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str::<Value>(&body).unwrap()["data"].clone()
    }

    /// One request. By HTTP/1.0, since by 1.1 it answers in chunks.
    fn ask(&self, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.address)?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: prometheus\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.split(' ').nth(1).unwrap_or_default().parse();
        Ok((status.unwrap_or_default(), body.to_owned()))
    }

    /// The values of `label` that `expression` has now.
    fn labels(&self, expression: &str, label: &str) -> Vec<String> {
        let query = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let data = self.get(&format!("/api/v1/query?query={query}"));
        let samples = data["result"].as_array().unwrap();
        samples
            .iter()
            .map(|sample| sample["metric"][label].as_str().unwrap_or("").to_owned())
            .collect()
    }

    /// The values of `expression` now.
    fn query(&self, expression: &str) -> Vec<f64> {
        let query = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let data = self.get(&format!("/api/v1/query?query={query}"));
        let samples = data["result"].as_array().unwrap();
        samples
            .iter()
            .map(|sample| sample["value"][1].as_str().unwrap().parse().unwrap())
            .collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The dashboards.
fn dashboards() -> Vec<Value> {
    let entries = std::fs::read_dir(repository("monitoring/dashboards")).unwrap();
    let texts = entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    texts
        .map(|text| serde_json::from_str(&text).unwrap())
        .collect()
}

/// The queries of every panel, for each choice of deployment, and for all of them at once.
fn panel_queries() -> Vec<String> {
    let mut jobs: Vec<String> = DEPLOYMENTS.iter().map(|it| escaped(it.job)).collect();
    jobs.dedup();
    // Not everything that has the metric `up` is a server, so that "All" lists the jobs.
    let all = [
        ("namespace", ".*".to_owned()),
        ("job", format!("({})", jobs.join("|"))),
        ("pod", ".*".to_owned()),
    ];
    let choices: Vec<_> = DEPLOYMENTS
        .iter()
        .map(Deployment::chosen)
        .chain([all])
        .collect();
    let mut queries = Vec::new();
    for dashboard in dashboards() {
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let query = target["expr"].as_str().unwrap();
                queries.extend(choices.iter().map(|chosen| filled(query, chosen)));
            }
        }
    }
    assert!(queries.len() > 100);
    queries
}

/// Each variable offers what each deployment is called.
fn check_variables(prometheus: &Prometheus) {
    let mut checked = 0;
    for dashboard in dashboards() {
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        for variable in variables.iter().filter(|it| it["type"] == "query") {
            let name = variable["name"].as_str().unwrap();
            let query = variable["definition"].as_str().unwrap();
            assert_eq!(query, variable["query"]["query"], "{name}");
            let (series, label) = query
                .strip_prefix("label_values(")
                .and_then(|rest| rest.strip_suffix(')')?.rsplit_once(", "))
                .unwrap();
            // With ".*" for all, series without the label are chosen too; but all jobs would be those of other servers too.
            assert_eq!(variable["allValue"] == ".*", name != "job", "{name}");
            for deployment in &DEPLOYMENTS {
                let series = filled(series, &deployment.chosen());
                let offered = prometheus.labels(&format!("group by ({label}) ({series})"), label);
                let own = match (name, deployment.pod) {
                    ("job", _) => deployment.job,
                    ("namespace", Some([namespace, _])) => namespace,
                    ("pod", Some([_, pod])) => pod,
                    ("namespace" | "pod", None) => "",
                    ("gpu", _) => "0",
                    ("model", _) => "addone",
                    _ => panic!("{name} is another variable"),
                };
                assert!(offered.iter().any(|it| it == own), "{series}: {offered:?}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 2 * 4 * DEPLOYMENTS.len());
}

/// What prometheus-adapter asks for the two metrics of the autoscaler, with its templates filled in for our pod.
fn adapter_queries() -> [String; 2] {
    let path = repository("k8s/components/scale-by-latency/adapter-values.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    ["inference_latency_p99", "ml_saturation"].map(|series| {
        let rule = text
            .split("- seriesQuery: '")
            .find(|rule| rule.starts_with(series));
        let query = rule.unwrap().split("metricsQuery:").nth(1).unwrap();
        let lines = query.split("\n    - ").next().unwrap();
        lines
            .trim_start_matches(" >-")
            .trim_matches([' ', '\n', '\''])
            .replace('\n', " ")
            .replace("<<.Series>>", series)
            .replace(
                "<<.LabelMatchers>>",
                r#"namespace="default",pod=~"server|other""#,
            )
            .replace("<<.GroupBy>>", "pod")
    })
}

/// What KEDA asks for instead, with our pod's namespace and name.
fn keda_queries() -> [String; 2] {
    let path = repository("k8s/components/keda/scaled-object.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let mut queries = text.split("query: ").skip(1).map(|rest| {
        let query = rest.split("threshold:").next().unwrap();
        let query = query.trim_start_matches('|').trim().replace('\n', " ");
        let pods = r#"namespace="model-serving",pod=~"model-serving-[a-z0-9]+-[a-z0-9]{5}""#;
        assert!(query.contains(pods), "{query}");
        query.replace(pods, r#"namespace="default",pod=~"server""#)
    });
    [queries.next().unwrap(), queries.next().unwrap()]
}

#[test]
fn rules_and_panels_have_data_and_autoscalers_see_the_clients_latency() {
    let Some(program) = Prometheus::program() else {
        skipped(format_args!(
            "Prometheus is not there (make monitoring-tools), so no rule was evaluated"
        ));
        return;
    };
    // Each request waits 110 ms for others, so that latency is that and not this machine's mood: a little more than half of
    // what autoscalers and the alert call slow.
    let path = fixture("addone");
    let gpus = FakeNvml::new(&FakeNvml::two_gpus());
    let server = gpus.serve(&[
        "--model",
        path.as_str(),
        "--admin-port",
        "0",
        "--max-batch-size",
        "32",
        "--max-queue-delay",
        "110ms",
    ]);
    let prometheus = Prometheus::start(&program, server.admin.unwrap());
    let [latency, saturation] = adapter_queries();
    let [keda_latency, keda_saturation] = keda_queries();
    // Without requests an autoscaler must see 0 and not nothing, or it would never scale down.
    for query in [&latency, &saturation, &keda_latency, &keda_saturation] {
        testing::eventually(query, || prometheus.query(query) == [0.0]);
    }
    let stop = AtomicBool::new(false);
    let latencies = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        // One client: a second one's requests would join those that wait already, and wait less.
        scope.spawn(|| {
            let mut client = server.connect();
            let request = Request::json("/predict", r#"{"inputs": [[1, 2, 3, 4]]}"#);
            while !stop.load(Ordering::Relaxed) {
                let sent = Instant::now();
                assert_eq!(client.send(&request).unwrap().status, 200);
                latencies.lock().unwrap().push(sent.elapsed().as_secs_f64());
            }
        });
        // A panic in here must end the load too, or the scope would wait for ever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check_rules(&prometheus);
            check_variables(&prometheus);
            for query in panel_queries() {
                testing::eventually(&query, || !prometheus.query(&query).is_empty());
            }
            // Records are written now and then, so that the load may be seen a little later than it came.
            for query in [&latency, &keda_latency] {
                testing::eventually(query, || prometheus.query(query).iter().any(|it| *it > 0.0));
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });

    let seen = [&latency, &keda_latency].map(|query| prometheus.query(query));
    assert_eq!(seen.each_ref().map(Vec::len), [1, 1]);
    let mut latencies = latencies.into_inner().unwrap();
    latencies.sort_by(f64::total_cmp);
    // What is read out of a histogram is at most a tenth wrong here. Which requests are within the two minutes that are looked
    // at, the clients cannot know, and on a busy machine a few take longer.
    let (quickest, slowest) = (latencies[0], latencies[latencies.len() - 1]);
    assert!(quickest >= 0.11, "{quickest} s");
    for seen in seen.iter().flatten() {
        assert!(
            (0.9 * quickest..=1.1 * slowest).contains(seen),
            "autoscalers see {seen} s, clients {quickest} to {slowest} s"
        );
    }
}

/// Every rule is evaluated without an error, and every record has a value.
fn check_rules(prometheus: &Prometheus) {
    let rules = || {
        let data = prometheus.get("/api/v1/rules");
        let groups = data["groups"].as_array().unwrap().clone();
        groups
            .iter()
            .flat_map(|group| group["rules"].as_array().unwrap().clone())
            .collect::<Vec<Value>>()
    };
    testing::eventually("every rule was evaluated", || {
        rules().iter().all(|rule| rule["health"] == "ok")
    });
    let rules = rules();
    let (records, alerts): (Vec<&Value>, Vec<&Value>) =
        rules.iter().partition(|rule| rule["type"] == "recording");
    assert!(records.len() >= 9 && alerts.len() >= 5, "{rules:?}");
    for record in records {
        let name = record["name"].as_str().unwrap();
        testing::eventually(name, || {
            let values = prometheus.query(name);
            !values.is_empty() && values.iter().all(|value| value.is_finite())
        });
    }
    let down = prometheus.query(r#"ALERTS{alertname=~"ModelServing(Down|Absent)"}"#);
    assert!(down.is_empty());
}
