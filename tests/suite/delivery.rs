//! How the server reaches its users: what the workflows, Terraform and the server say of each other, and what the
//! workflows' scripts do, with stand-ins for the tools that they call.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use model_serving::config::{DEFAULT_PORT, ServeFlags};
use serde_json::Value;
use testing::{Server, repository, skipped};

const MODULE: &str = "terraform/modules/model-serving";
const ENVIRONMENTS: [&str; 2] = ["staging", "production"];

fn read(path: impl AsRef<Path>) -> String {
    let path = repository(path.as_ref().to_str().unwrap());
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: impl AsRef<Path>) -> Value {
    serde_yaml_ng::from_str(&read(path)).unwrap()
}

fn workflow(name: &str) -> Value {
    yaml(format!(".github/workflows/{name}.yml"))
}

/// The files of workflows, and of actions if so wished.
fn github(actions: bool) -> Vec<PathBuf> {
    let entries = |folder: &str| {
        let mut paths: Vec<PathBuf> = fs::read_dir(repository(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        paths
    };
    let mut found = entries(".github/workflows");
    assert!(found.len() >= 5);
    if actions {
        let folders = entries(".github/actions");
        found.extend(folders.iter().map(|folder| folder.join("action.yml")));
    }
    found
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// The steps of a job of a workflow, or of an action.
fn steps(value: &Value) -> Vec<&Value> {
    let steps = value.get("steps").or_else(|| value["runs"].get("steps"));
    steps
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .collect()
}

fn jobs(workflow: &Value) -> impl Iterator<Item = (&String, &Value)> {
    workflow["jobs"].as_object().unwrap().iter()
}

/// Where in `steps` the first one is whose action or script contains `what`.
fn position(steps: &[&Value], what: &str) -> usize {
    let found = steps.iter().position(|step| {
        [&step["uses"], &step["run"]]
            .iter()
            .any(|part| part.as_str().is_some_and(|part| part.contains(what)))
    });
    found.unwrap_or_else(|| panic!("no step has {what}"))
}

/// The jobs that `job` waits for, and those that they wait for.
fn waits_for(workflow: &Value, job: &str) -> BTreeSet<String> {
    let needs = &workflow["jobs"][job]["needs"];
    let direct: Vec<&str> = match needs {
        Value::String(name) => vec![name.as_str()],
        Value::Array(names) => names.iter().map(text).collect(),
        _ => Vec::new(),
    };
    let further = direct.iter().flat_map(|name| waits_for(workflow, name));
    let mut all: BTreeSet<String> = further.collect();
    all.extend(direct.into_iter().map(str::to_owned));
    all
}

#[test]
fn actions_of_others_are_pinned_by_commit() {
    let mut pinned = 0;
    for path in github(true) {
        let text = fs::read_to_string(&path).unwrap();
        let uses = text
            .lines()
            .map(|line| line.trim_start_matches([' ', '-']))
            .filter_map(|line| line.strip_prefix("uses: "));
        for action in uses {
            let (_, version) = action.split_once('@').unwrap_or_default();
            let (commit, version) = version.split_once(" # v").unwrap_or_default();
            let is_commit =
                commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(
                (is_commit && !version.is_empty()) || action.starts_with("./"),
                "{}: {action}",
                path.display()
            );
            pinned += usize::from(is_commit);
        }
    }
    assert!(pinned > 40, "{pinned}");
}

#[test]
fn an_action_is_pinned_to_the_same_commit_everywhere() {
    let mut pins: BTreeMap<String, String> = BTreeMap::new();
    for path in github(true) {
        for line in fs::read_to_string(&path).unwrap().lines() {
            let Some((name, commit)) = line
                .split_once("uses: ")
                .and_then(|(_, it)| it.split_once('@'))
            else {
                continue;
            };
            let known = pins.entry(name.to_owned()).or_insert(commit.to_owned());
            assert_eq!(known, commit, "{}: {name}", path.display());
        }
    }
}

#[test]
fn workflows_stop_at_a_failure_and_may_only_read_where_a_job_does_not_say_so() {
    for path in github(false) {
        let text = fs::read_to_string(&path).unwrap();
        // Without it, a command that fails before a pipe is taken for one that worked.
        assert_eq!(
            yaml(&path)["defaults"]["run"]["shell"],
            "bash",
            "{}: no pipefail",
            path.display()
        );
        let permissions = text.split("\npermissions:").nth(1).unwrap();
        let least = [" {}\n\n", "\n  contents: read\n\n"];
        let first = permissions.lines().next().unwrap();
        assert!(
            least.iter().any(|least| permissions.starts_with(least)),
            "{}: permissions:{first}",
            path.display()
        );
    }
}

/// GitHub refuses to start a workflow that calls another one whose jobs may do more than the call allows.
#[test]
fn a_call_allows_what_the_jobs_of_the_called_workflow_may_do() {
    let mut calls = 0;
    for path in github(false) {
        let caller: Value = yaml(&path);
        for (name, job) in jobs(&caller) {
            let Some(target) = job["uses"].as_str() else {
                continue;
            };
            let target = yaml(target.trim_start_matches("./"));
            let asked = jobs(&target)
                .map(|(_, job)| &job["permissions"])
                .chain([&target["permissions"]]);
            for (what, level) in asked.filter_map(Value::as_object).flatten() {
                let given = job["permissions"][what].as_str();
                assert!(
                    given == level.as_str() || given == Some("write"),
                    "{}: {name} calls a job that has {what}: {level}",
                    path.display()
                );
            }
            calls += 1;
        }
    }
    assert_eq!(calls, 4);
}

/// `gh run download` needs `actions: read`, which a job that states its permissions has dropped.
#[test]
fn what_a_job_downloads_was_uploaded_by_one_that_it_waits_for() {
    let mut downloads = 0;
    for path in github(false) {
        let all = fs::read_to_string(&path).unwrap();
        assert!(!all.contains("gh run download"), "{}", path.display());
        let workflow: Value = yaml(&path);
        for (name, job) in jobs(&workflow) {
            for step in steps(job) {
                if !step["uses"]
                    .as_str()
                    .is_some_and(|it| it.contains("/download-artifact@"))
                {
                    continue;
                }
                let wanted = step["with"].get("name").or(step["with"].get("pattern"));
                let wanted = text(wanted.unwrap()).trim_end_matches('*');
                let before = waits_for(&workflow, name);
                let uploaded = before
                    .iter()
                    .flat_map(|name| steps(&workflow["jobs"][name]));
                let found = uploaded
                    .filter(|step| {
                        step["uses"]
                            .as_str()
                            .is_some_and(|it| it.contains("/upload-artifact@"))
                    })
                    .any(|step| text(&step["with"]["name"]).starts_with(wanted));
                assert!(
                    found,
                    "{}: {name} downloads {wanted}, which nothing before it uploads",
                    path.display()
                );
                downloads += 1;
            }
        }
    }
    assert_eq!(downloads, 4);
}

#[test]
fn an_image_is_built_once_on_main_after_all_checks() {
    let docker = workflow("docker");
    assert_eq!(
        docker["on"],
        serde_json::json!({"push": {"branches": ["main"]}})
    );
    for path in github(true) {
        let text = fs::read_to_string(&path).unwrap();
        let builds = text.contains("build-push-action@") || text.contains("docker build ");
        let name = path.file_stem().unwrap().to_str().unwrap();
        // What ci.yml builds of a pull request stays on its machine.
        assert!(
            !builds || ["docker", "ci"].contains(&name),
            "{} builds an image",
            path.display()
        );
        if name != "docker" {
            assert!(
                !text.contains("push=true") && !text.contains("push: true"),
                "{} pushes what it builds",
                path.display()
            );
        }
        // Everything else that gives a name looks first whether the name is taken.
        for named in text.split("imagetools create").skip(1) {
            assert!(
                named.starts_with(" --tag \"$IMAGE:unchecked-"),
                "{} can move a name",
                path.display()
            );
        }
        for compiles in ["cargo build", "cargo install", "make run"] {
            assert!(!text.contains(compiles), "{}: {compiles}", path.display());
        }
    }
    assert_eq!(docker["jobs"]["ci"]["uses"], "./.github/workflows/ci.yml");
    for (job, before) in [
        ("build", "ci"),
        ("publish", "build"),
        ("images", "publish"),
        ("staging", "images"),
    ] {
        assert!(
            waits_for(&docker, job).contains(before),
            "{job} does not wait for {before}"
        );
    }
    // One run for each commit: a group by branch would leave commits out.
    assert_eq!(docker["concurrency"]["group"], "docker-${{ github.sha }}");
}

#[test]
fn what_was_pushed_is_scanned_before_it_is_signed_on_both_variants_and_platforms() {
    let docker = workflow("docker");
    let publish = &docker["jobs"]["publish"];
    assert_eq!(
        publish["strategy"]["matrix"]["include"],
        serde_json::json!([{"variant": "cpu", "platforms": 2}, {"variant": "gpu", "platforms": 1}])
    );
    let steps = steps(publish);
    let signed = position(&steps, "cosign sign");
    let scans: Vec<&&Value> = steps[..signed]
        .iter()
        .filter(|step| {
            step["uses"]
                .as_str()
                .is_some_and(|it| it.contains("/trivy-action@"))
        })
        .collect();
    let of = "${{ env.IMAGE }}@${{ steps.push.outputs.digest }}";
    assert!(
        scans
            .iter()
            .all(|step| step["with"]["image-ref"] == of && step["with"]["exit-code"] == "1")
    );
    assert!(
        scans.iter().any(|step| step["if"] == UNFINISHED),
        "not every variant is scanned before it is signed"
    );
    assert!(
        scans
            .iter()
            .any(|step| step["env"]["TRIVY_PLATFORM"] == "linux/arm64"),
        "arm64 is not scanned before it is signed"
    );
    let named = position(&steps, "scripts/name-image.sh");
    for attached in ["cosign attest", "/attest-build-provenance@"] {
        let attached = position(&steps, attached);
        assert!(signed < attached && attached < named);
    }
    // Nothing comes after the name, so that what has it is finished.
    assert_eq!(named, steps.len() - 1, "the name does not come last");
}

/// The condition of steps for an image that has no name yet.
const UNFINISHED: &str = "steps.before.outputs.digest == ''";

/// Whoever may push could otherwise have what they pushed signed.
#[test]
fn what_has_its_name_already_is_verified_and_never_signed() {
    let docker = workflow("docker");
    let steps = steps(&docker["jobs"]["publish"]);
    let before = steps
        .iter()
        .position(|step| step["id"] == "before")
        .unwrap();
    let verify = &steps[before + 1];
    assert_eq!(verify["uses"], "./.github/actions/verify-image");
    assert_eq!(verify["if"], UNFINISHED.replace("==", "!="));
    assert_eq!(
        verify["with"]["image"],
        "${{ env.IMAGE }}@${{ steps.before.outputs.digest }}"
    );
    for step in &steps[before + 2..] {
        let condition = step["if"].as_str().unwrap_or_default();
        assert!(
            condition.starts_with(UNFINISHED),
            "of an image that is there already: {step}"
        );
    }
    // The name of the artifact would be the same in a second attempt, which GitHub refuses.
    let bill = &steps[position(&steps, "/sbom-action@")]["with"];
    assert_eq!(bill["upload-artifact"], false);
}

#[test]
fn a_tag_promotes_then_production_then_the_release() {
    for path in github(false) {
        let on = &yaml(&path)["on"];
        assert!(on.get("release").is_none(), "{}", path.display());
        let tags = on["push"].get("tags").is_some();
        assert_eq!(tags, path.ends_with("deploy.yml"), "{}", path.display());
        let creates = fs::read_to_string(&path)
            .unwrap()
            .matches("gh release create")
            .count();
        assert_eq!(creates, usize::from(tags), "{}", path.display());
    }
    let deploy = workflow("deploy");
    let creates = |job: &Value| {
        steps(job).iter().any(|step| {
            step["run"]
                .as_str()
                .is_some_and(|it| it.contains("gh release create"))
        })
    };
    assert!(creates(&deploy["jobs"]["release"]));
    let before = waits_for(&deploy, "release");
    for job in ["promote", "production", "programs", "try", "checksums"] {
        assert!(before.contains(job), "the release does not wait for {job}");
    }
    assert!(waits_for(&deploy, "production").contains("promote"));
    // Only the release may write to the repository, and a step or job that failed is no reason to go on.
    for (name, job) in jobs(&deploy) {
        assert!(job.get("if").is_none(), "{name} has a condition");
        let writes = job["permissions"]["contents"] == "write";
        assert_eq!(writes, name == "release", "{name}");
    }
    for (environment, caller) in [("staging", "docker"), ("production", "deploy")] {
        let job = &workflow(caller)["jobs"][environment];
        assert_eq!(job["uses"], "./.github/workflows/cloud-run.yml");
        assert_eq!(job["with"]["environment"], environment);
        for digest in ["cpu", "gpu"] {
            let expected = format!(".outputs.{digest} }}}}");
            assert!(text(&job["with"][digest]).ends_with(&expected));
        }
    }
    let jobs = &workflow("cloud-run")["jobs"]["deploy"];
    assert_eq!(jobs["environment"], "${{ inputs.environment }}");
}

#[test]
fn signature_bill_of_materials_and_provenance_are_verified_before_anything_is_promoted_or_deployed()
{
    let verify = read(".github/actions/verify-image/action.yml");
    for needed in [
        "cosign verify \"${signer[@]}\" \"$IMAGE\"",
        "cosign verify-attestation --type spdxjson \"${signer[@]}\" \"$IMAGE\"",
        "gh attestation verify \"oci://$IMAGE\"",
        "/.github/workflows/docker.yml",
        "@refs/heads/main\"",
        "--certificate-github-workflow-sha \"$COMMIT\"",
        "--source-digest \"$COMMIT\"",
    ] {
        assert!(verify.contains(needed), "it does not verify {needed}");
    }
    let deploy = workflow("deploy");
    let cloud_run = workflow("cloud-run");
    for (job, then) in [
        (&deploy["jobs"]["promote"], "scripts/name-image.sh"),
        (&cloud_run["jobs"]["deploy"], "google-github-actions/auth@"),
    ] {
        let steps = steps(job);
        let verified: Vec<&str> = steps[..position(&steps, then)]
            .iter()
            .filter(|step| step["uses"] == "./.github/actions/verify-image")
            .map(|step| text(&step["with"]["image"]))
            .collect();
        assert_eq!(
            verified.len(),
            2,
            "not both images are verified before {then}"
        );
        assert!(verified[0].ends_with(".cpu }}") && verified[1].ends_with(".gpu }}"));
    }
}

/// With the credentials of a workload identity, `gcloud auth print-identity-token` prints nothing.
#[test]
fn a_private_service_is_called_with_a_token_for_its_own_url() {
    for path in github(true) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("print-identity-token"), "{}", path.display());
    }
    let cloud_run = workflow("cloud-run");
    let steps = steps(&cloud_run["jobs"]["deploy"]);
    let tried = position(&steps, "deploy-cloud-run.sh try");
    for variant in ["cpu", "gpu"] {
        let id = format!("identity-{variant}");
        let token = steps.iter().position(|step| step["id"] == id).unwrap();
        let with = &steps[token]["with"];
        assert_eq!(with["token_format"], "id_token");
        let audience = format!("${{{{ steps.look.outputs.{variant} }}}}");
        assert_eq!(
            with["id_token_audience"], audience,
            "the audience is not the service's URL"
        );
        assert_eq!(with["id_token_include_email"], true);
        // gcloud keeps the credentials of the first login.
        assert_eq!(with["create_credentials_file"], false);
        assert_eq!(with["export_environment_variables"], false);
        assert!(position(&steps, "deploy-cloud-run.sh look") < token && token < tried);
        for called in [tried, position(&steps, "deploy-cloud-run.sh shift")] {
            let name = format!("IDENTITY_{}", variant.to_uppercase());
            let expected = format!("${{{{ steps.{id}.outputs.id_token }}}}");
            assert_eq!(steps[called]["env"][&name], expected);
            let passed = format!("IDENTITY_TOKEN=${name} scripts/deploy-cloud-run.sh");
            assert!(text(&steps[called]["run"]).contains(&passed), "{passed}");
        }
    }
    // The token lives an hour.
    let minutes = cloud_run["jobs"]["deploy"]["timeout-minutes"].as_u64();
    assert!(minutes.unwrap() <= 60);
    // Its permission, getOpenIdToken, is one of this role's.
    assert!(read(format!("{MODULE}/identities.tf")).contains("\"roles/iam.workloadIdentityUser\""));
}

#[test]
fn google_trusts_a_repository_and_environments_by_claims_that_no_rename_changes() {
    let identities = read(format!("{MODULE}/identities.tf"));
    let start = identities.find("attribute_condition").unwrap();
    let condition = &identities[start..start + identities[start..].find("])\n").unwrap()];
    assert!(
        condition.contains("assertion.repository_id == '${local.github_repository_id}'"),
        "the condition does not name the repository by its number"
    );
    assert!(
        condition.contains("assertion.environment in ["),
        "the condition does not name the environments"
    );
    assert!(
        condition.contains(
            "assertion.environment == '${var.environment}' || assertion.ref == 'refs/heads/main'"
        ),
        "any branch can plan"
    );
    assert!(!condition.contains("assertion.sub") && !condition.contains("assertion.repository "));
    for mapped in ["repository_id", "environment"] {
        let line = format!("\"attribute.{mapped}\"");
        let line = identities.lines().find(|it| it.contains(&line)).unwrap();
        assert!(line.ends_with(&format!("\"assertion.{mapped}\"")), "{line}");
    }
    assert!(identities.contains("/attribute.environment/${each.value.environment}\""));
    // The accounts that deploy and that plan are not the same, and only one may deploy.
    assert!(identities.contains("environment = \"${var.environment}-plan\""));
    let plan = workflow("terraform");
    assert_eq!(
        plan["jobs"]["plan"]["environment"],
        "${{ matrix.environment }}-plan"
    );
}

#[test]
fn the_workflow_sets_image_tag_and_traffic_and_terraform_the_rest() {
    let mut calls = 0;
    let mut files = github(true);
    files.push(repository("scripts/deploy-cloud-run.sh"));
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        // It labels each revision, which Terraform would take away again.
        for other in ["deploy-cloudrun@", "gcloud run deploy", "services replace"] {
            assert!(!text.contains(other), "{}: {other}", path.display());
        }
        for call in text.split("gcloud run services ").skip(1) {
            let call = call.split(['\n', ';', '|']).next().unwrap();
            let (command, flags) = call.split_once(' ').unwrap();
            let allowed: &[&str] = match command {
                "describe" => &["--format"],
                // With --tag or --revision-suffix, gcloud gives the revision a name, which stays in the template.
                "update" => &["--image", "--no-traffic", "--quiet"],
                "update-traffic" => &[
                    "--remove-tags",
                    "--quiet",
                    "--to-revisions",
                    "--update-tags",
                ],
                other => panic!("{}: gcloud run services {other}", path.display()),
            };
            for flag in flags.split_whitespace().filter(|it| it.starts_with("--")) {
                let name = flag.split('=').next().unwrap();
                assert!(allowed.contains(&name), "{name} is Terraform's: {call}");
            }
            calls += 1;
        }
    }
    assert_eq!(calls, 8);
    let main = read(format!("{MODULE}/main.tf"));
    let (_, ignored) = main.split_once("ignore_changes = [").unwrap();
    let ignored: Vec<&str> = ignored
        .split(']')
        .next()
        .map(|_| ignored.lines().skip(1))
        .unwrap()
        .map(|line| line.trim().trim_end_matches(','))
        .take_while(|line| *line != "]")
        .collect();
    assert_eq!(
        ignored,
        [
            "client",
            "client_version",
            "template[0].annotations",
            "template[0].containers[0].image",
            "template[0].labels",
            "traffic"
        ]
    );
}

/// The names behind `${{ vars.` in a text.
fn variables_read(text: &str) -> BTreeSet<String> {
    text.split("vars.")
        .skip(1)
        .map(|rest| {
            let end = rest.find(|it: char| !it.is_ascii_uppercase() && it != '_');
            rest[..end.unwrap_or(rest.len())].to_owned()
        })
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn the_workflows_read_the_variables_that_terraform_prints() {
    let outputs = read(format!("{MODULE}/outputs.tf"));
    for (output, workflow, own) in [
        (
            "github_variables",
            "cloud-run",
            ["PREDICT_CHECK", "PREDICT_REQUEST"],
        ),
        (
            "github_plan_variables",
            "terraform",
            ["TERRAFORM_STATE_BUCKET", "TERRAFORM_VARIABLES"],
        ),
    ] {
        let (_, printed) = outputs
            .split_once(&format!("output \"{output}\" {{"))
            .unwrap();
        // The one with services is made without those that are not there.
        let (_, printed) = printed
            .split_once("value = {\n")
            .filter(|(before, _)| !before.contains("value = {"))
            .or(printed.split_once("in {\n"))
            .unwrap();
        let mut printed: BTreeSet<String> = printed
            .lines()
            .take_while(|line| !line.trim().starts_with('}'))
            .map_while(|line| Some(line.split_once('=')?.0.trim().to_owned()))
            .collect();
        printed.extend(own.map(str::to_owned));
        let read = variables_read(&read(format!(".github/workflows/{workflow}.yml")));
        assert_eq!(read, printed, "{workflow}.yml");
    }
}

/// The names that begin a line as `name  = "` in capitals, which only names of variables do.
fn environment_of(terraform: &str) -> Vec<&str> {
    terraform
        .lines()
        .filter_map(|line| line.trim().strip_prefix("name  = \"")?.strip_suffix('"'))
        .filter(|name| name.starts_with(|first: char| first.is_ascii_uppercase()))
        .collect()
}

#[test]
fn terraform_gives_an_l4_what_it_needs_and_the_server_what_it_knows() {
    let main = read(format!("{MODULE}/main.tf"));
    let (service, template) = main.split_once("  template {").unwrap();
    let template = template.split("\n  }\n").next().unwrap();
    assert!(
        service.contains("  scaling {\n    min_instance_count = each.value.instances.min")
            && !template.contains("min_instance_count"),
        "the least number of instances is one of each revision"
    );
    assert!(service.contains("deletion_protection = var.deletion_protection == null ?"));
    let outputs = read(format!("{MODULE}/outputs.tf"));
    assert!(
        outputs.contains(": name => value if value != \"\" }"),
        "GitHub refuses empty variables"
    );
    for needed in [
        "each.key == \"gpu\" ? [\"nvidia-l4\"] : []",
        "gpu_zonal_redundancy_disabled    = each.key == \"gpu\" ? true : null",
        "cpu_idle          = each.key == \"cpu\"",
        "each.key == \"gpu\" ? { \"nvidia.com/gpu\" = \"1\" } : {}",
        "path = \"/ready\"",
        "path = \"/health\"",
    ] {
        assert!(main.contains(needed), "{needed}");
    }
    let port = format!("container_port = {DEFAULT_PORT}\n");
    assert!(main.contains(&port), "no {port}");
    // Where there is one port, probes ask at it and no other is opened.
    assert!(!main.contains("ADMIN_PORT"));
    for probe in main.split("http_get {").skip(1) {
        let probe = probe.split('}').next().unwrap();
        assert!(
            probe.contains(&format!("port = {DEFAULT_PORT}\n")),
            "{probe}"
        );
    }
    let command = ServeFlags::command();
    let names = environment_of(&main);
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        let known = command
            .get_arguments()
            .any(|argument| argument.get_env().is_some_and(|known| known == name));
        assert!(known, "{name}");
    }
}

/// Google refuses a longer name only when it is applied.
#[test]
fn names_in_google_cloud_are_not_too_long() {
    let longest_of = |most: usize, argument: &str, file: &str| {
        let text = read(format!("{MODULE}/{file}.tf"));
        let names = text.lines().filter_map(|line| {
            let (name, value) = line.trim().split_once('=')?;
            let own = name.trim() == argument && !value.contains("google_");
            own.then(|| value.trim().trim_matches('"').to_owned())
        });
        let mut seen = 0;
        for name in names {
            let name = name
                .replace("${local.name}", "model-serving-production")
                .replace("local.name", "model-serving-production")
                .replace("${var.environment}", "production")
                .replace("${var.project}", &"p".repeat(30));
            assert!(!name.contains("${"), "{name}");
            assert!(
                name.len() <= most,
                "{argument} {name} has {} letters, of {most}",
                name.len()
            );
            seen += 1;
        }
        seen
    };
    assert_eq!(longest_of(30, "account_id", "identities"), 3);
    assert_eq!(longest_of(32, "workload_identity_pool_id", "identities"), 1);
    assert_eq!(longest_of(63, "name", "storage"), 1);
    // A service and its tag share a label of the name service.
    assert!("model-serving-production-cpu".len() + "candidate".len() <= 46);
}

#[test]
fn the_lock_files_pin_every_provider_for_both_environments() {
    let locks =
        ENVIRONMENTS.map(|name| read(format!("terraform/environments/{name}/.terraform.lock.hcl")));
    assert_eq!(locks[0], locks[1]);
    let blocks: Vec<&str> = locks[0].split("\nprovider ").skip(1).collect();
    let versions = read(format!("{MODULE}/versions.tf"));
    let sources: Vec<&str> = versions
        .lines()
        .filter_map(|line| line.trim().strip_prefix("source "))
        .filter_map(|line| line.split('"').nth(1))
        .collect();
    assert_eq!((blocks.len(), sources.len()), (2, 2));
    // Terraform writes `>= 7.19, < 9` so.
    assert_eq!(versions.matches("version = \">= 7.19, < 9\"").count(), 2);
    for source in sources {
        let block = blocks
            .iter()
            .find(|block| block.starts_with(&format!("\"registry.terraform.io/{source}\"")))
            .unwrap_or_else(|| panic!("nothing pins {source}"));
        assert!(block.contains("constraints = \">= 7.19.0, < 9.0.0\""));
        // Of the unpacked provider for some platforms, and of the archives for all.
        assert!(block.matches("\"h1:").count() >= 3, "{block}");
        assert!(block.matches("\"zh:").count() >= 11, "{block}");
    }
    assert!(read("Makefile").contains("-lockfile=readonly"));
    assert!(read(".github/workflows/terraform.yml").contains("-lockfile=readonly"));
}

/// A key is written once, an environment has links to the Python that made it, and each job has other tools.
#[test]
fn tools_are_kept_for_the_job_and_the_python_that_made_them() {
    let prepare = yaml(".github/actions/prepare/action.yml");
    let steps = steps(&prepare);
    let cache = &steps[position(&steps, "actions/cache@")]["with"];
    let key = text(&cache["key"]);
    for part in [
        "github.job",
        "steps.python.outputs.python-version",
        "hashFiles(",
    ] {
        assert!(key.contains(part), "the key of the tools lacks {part}");
    }
    let python = &steps[position(&steps, "actions/setup-python@")];
    assert_eq!(python["id"], "python");
    // Each environment that recipes make out of a lock file which the key has.
    for folder in text(&cache["path"]).lines() {
        let name = folder.trim_start_matches(".tools/");
        assert!(
            read("Makefile").contains(&format!(".tools/{name}")),
            "{folder}"
        );
    }
    for path in github(false) {
        let text = fs::read_to_string(&path).unwrap();
        // It asks organizations for a licence.
        assert!(
            !text.contains("gitleaks/gitleaks-action"),
            "{}",
            path.display()
        );
    }
}

#[test]
fn dependabot_looks_at_actions_and_providers() {
    let text = read(".github/dependabot.yml");
    for folder in [
        "/.github/actions/*",
        "/terraform/environments/*",
        "/terraform/modules/*",
    ] {
        assert!(text.contains(folder), "nobody looks at {folder}");
    }
}

/// The number behind the first `name = ` after `start`.
fn number_after(text: &str, start: &str, name: &str) -> u32 {
    let (_, text) = text
        .split_once(start)
        .unwrap_or_else(|| panic!("no {start}"));
    let (_, text) = text
        .split_once(&format!("{name} = "))
        .unwrap_or_else(|| panic!("no {name}"));
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[test]
fn terraform_fits_a_new_project() {
    let variables = read(format!("{MODULE}/variables.tf"));
    // What Google gives to a new project.
    let quota = number_after(&variables, "variable \"l4_quota\" {", "default    ");
    assert_eq!(quota, 3, "a new project's quota of L4s");
    let main = read(format!("{MODULE}/main.tf"));
    let (_, services) = main
        .split_once("\"google_project_service\" \"needed\"")
        .unwrap();
    let services = services.split("])").next().unwrap();
    for api in [
        "billingbudgets",
        "monitoring",
        "run",
        "iamcredentials",
        "sts",
    ] {
        let api = format!("\"{api}.googleapis.com\"");
        assert!(services.contains(&api), "{api} is not enabled");
    }
    // Monitoring's account can be given a role only after it was made.
    let (_, identity) = main
        .split_once("\"google_project_service_identity\" \"monitoring\"")
        .expect("nothing makes the account of Monitoring");
    assert!(identity.contains("service = \"monitoring.googleapis.com\""));
    let (_, role) = main.split_once("\"uptime_check\" {").unwrap();
    assert!(
        role.contains("depends_on = [google_project_service_identity.monitoring]"),
        "Monitoring's account gets a role before it exists"
    );
    let monitoring = read(format!("{MODULE}/monitoring.tf"));
    let (_, budget) = monitoring
        .split_once("\"google_billing_budget\" \"this\"")
        .unwrap();
    assert!(budget.contains("depends_on = [google_project_service.needed]"));
    for environment in ENVIRONMENTS {
        let main = read(format!("terraform/environments/{environment}/main.tf"));
        let most = number_after(&main, "gpu_image == null ?", "max");
        assert!(
            most < quota,
            "{environment}: {most} instances leave no L4 to a new revision"
        );
        let default = number_after(&main, "variable \"l4_quota\" {", "default    ");
        assert_eq!(default, quota, "{environment}");
        for provider in ["google", "google-beta"] {
            let (_, provider) = main
                .split_once(&format!("provider \"{provider}\" {{\n"))
                .unwrap();
            let provider = provider.split("\n}").next().unwrap();
            assert!(
                provider.contains("user_project_override = true")
                    && provider.contains("billing_project       = var.project"),
                "{environment}: budgets need to know who pays for the call"
            );
        }
        // The service without a GPU keeps the module's default, which scales to zero.
        assert!(main.contains("null : { image = var.cpu_image }"));
    }
    let (_, cpu) = variables.split_once("variable \"cpu\" {").unwrap();
    assert!(cpu.contains("{ min = 0, max = 10 }"));
}

#[test]
fn ci_runs_every_part_of_make_test_and_lets_none_be_skipped() {
    let ci = workflow("ci");
    assert_eq!(ci["env"]["FAIL_ON_SKIPPED"], "1");
    let makefile = read("Makefile");
    let (_, rest) = makefile.split_once("\nALL_CHECKS := ").unwrap();
    let parts: BTreeSet<&str> = rest
        .split("\n\n")
        .next()
        .unwrap()
        .split_whitespace()
        .filter(|word| *word != "\\")
        .collect();
    let mut run = BTreeSet::new();
    for (name, job) in jobs(&ci) {
        let steps = steps(job);
        for (at, step) in steps.iter().enumerate() {
            let Some(script) = step["run"].as_str() else {
                continue;
            };
            // Only this fails on a skipped check.
            let Some((_, stages)) = script.split_once("run-stages.py ") else {
                assert!(
                    [
                        "make validate-terraform",
                        "make secrets SINCE=\"origin/$BASE\""
                    ]
                    .contains(&script),
                    "{name}: {script}"
                );
                continue;
            };
            run.extend(stages.split_whitespace());
            if stages.contains("play-kube") {
                // Root's pods can be reached, and its environment must be what the step before compiled with.
                let root = "sudo --preserve-env env \"PATH=$PATH\" \"HOME=$HOME\" ";
                assert!(script.starts_with(root), "play-kube does not run as root");
            }
            // What is made of the distribution's packages needs lists that are not older than they.
            if ["lint-monitoring", "black-box"]
                .iter()
                .any(|it| stages.contains(it))
            {
                let prepare = &steps[position(&steps, "actions/prepare")];
                assert_eq!(prepare["with"]["packages"], "true", "{name}");
            }
            if stages.contains("lint-terraform") {
                assert!(
                    position(&steps, "hashicorp/setup-terraform@") < at,
                    "{name} checks Terraform without Terraform"
                );
            }
        }
    }
    assert!(run.remove("advisories"));
    assert_eq!(run, parts);
    let (terraform, lint) = (
        "terraform_version: \"",
        "terraform -chdir=$$environment validate",
    );
    assert!(read(".github/workflows/ci.yml").contains(terraform));
    assert!(makefile.contains(lint), "nothing validates terraform/");
    assert!(makefile.contains("terraform fmt -check"));
    assert!(read(".github/workflows/terraform.yml").contains("terraform plan "));
}

#[test]
fn every_commit_is_checked_by_what_is_quick_and_pull_requests_and_main_by_everything() {
    let ci = workflow("ci");
    let quick = ["files", "rust", "unit", "dependencies"];
    for (name, job) in jobs(&ci) {
        let condition = job.get("if").and_then(Value::as_str);
        if quick.contains(&name.as_str()) {
            assert_eq!(condition, None, "{name}");
        } else {
            assert!(
                condition.unwrap().contains("github.event_name"),
                "{name}: every commit waits for it"
            );
        }
        assert!(job["timeout-minutes"].as_u64().unwrap() <= 40, "{name}");
    }
    for trigger in ["push", "pull_request", "workflow_call", "schedule"] {
        assert!(ci["on"].get(trigger).is_some(), "{trigger}");
    }
}

/// A folder with stand-ins for programs, each a script, that are found before the real ones.
struct Tools {
    folder: tempfile::TempDir,
}

impl Tools {
    /// None, with a word, where the scripts' own tools are missing.
    fn new(stand_ins: &[(&str, &str)]) -> Option<Self> {
        for needed in ["bash", "jq", "curl"] {
            let there = Command::new(needed).arg("--version").output().is_ok();
            if !there {
                skipped(format_args!(
                    "there is no {needed}, so the workflows' scripts were not run"
                ));
                return None;
            }
        }
        let folder = tempfile::tempdir().unwrap();
        for (name, script) in stand_ins {
            let path = folder.path().join(name);
            fs::write(
                &path,
                format!("#!/usr/bin/env bash\nset -euo pipefail\n{script}"),
            )
            .unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Some(Self { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Runs a step as GitHub does, in the folder of the repository; returns whether it succeeded, what it printed, and
    /// its outputs.
    fn run(
        &self,
        script: &str,
        environment: &[(&str, &str)],
    ) -> (bool, String, BTreeMap<String, String>) {
        let outputs = self.path("outputs");
        fs::write(&outputs, "").unwrap();
        let path = format!(
            "{}:{}",
            self.folder.path().display(),
            std::env::var("PATH").unwrap()
        );
        let done = Command::new("bash")
            .args(["--noprofile", "--norc", "-eo", "pipefail", "-c", script])
            .current_dir(repository(""))
            .env("PATH", path)
            .env("GITHUB_OUTPUT", &outputs)
            .env("GITHUB_STEP_SUMMARY", self.path("summary"))
            .env("RUNNER_TEMP", self.folder.path())
            .env("STAND_INS", self.folder.path())
            .env("RETRIES", "0")
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let printed = format!(
            "{}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
        let outputs = self
            .text("outputs")
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        (done.status.success(), printed, outputs)
    }
}

/// Cloud Run: each service is a file with its image, its revisions by number, and its traffic. Services answer at
/// `$URL`, with another one's URL in `$SERVICE_URL` or, of a revision with a tag, in `$CANDIDATE_URL`.
const GCLOUD: &str = r#"
note=$STAND_INS/cloud/${4:-}
change() { jq "$@" "$note" > "$note.new"; mv "$note.new" "$note"; }
case "$*" in
"run services describe "*)
    jq --arg service "${SERVICE_URL:-$URL}" --arg candidate "${CANDIDATE_URL:-$URL}" '{
        spec: {template: {spec: {containers: [{image: .images[-1]}]}}},
        status: {url: $service, latestCreatedRevisionName: "revision-\(.images | length)",
            traffic: [.traffic[] | if .tag then .url = $candidate else . end]}}' "$note"
    ;;
"run revisions describe revision-"*)
    jq --argjson number "${4#revision-}" '{spec: {containers: [{image: .images[$number - 1]}]}}' "$STAND_INS/cloud/serving"
    ;;
"run services update "*" --image="*" --no-traffic --quiet")
    image=${5#--image=}
    change --arg image "$image" '.images += [$image]'
    [ "${NOT_READY:-}" != "$image" ] || { echo "the revision is not ready" >&2; exit 1; }
    ;;
"run services update-traffic "*" --quiet")
    for flag in "${@:5}"; do
        case $flag in
        --remove-tags=candidate) change '.traffic |= map(select(.tag != "candidate"))' ;;
        --update-tags=candidate=*)
            change --arg to "${flag##*=}" '.traffic |= map(select(.tag != "candidate")) + [{revisionName: $to, tag: "candidate"}]' ;;
        --to-revisions=*)
            change --arg to "${flag#*=}" '.traffic |= map(select(.tag)) +
                ($to | split(",") | map(split("=") | {revisionName: .[0], percent: (.[1] | tonumber)}))' ;;
        esac
    done
    ;;
"secrets versions access "*) printf '# a comment\n\nkey-of-a-client\n' ;;
*) exit 9 ;;
esac
"#;

/// What Cloud Run's stand-in and the workflow have in common: the folder, and the steps of a deployment.
struct Deployment {
    tools: Tools,
    _server: Server,
    url: String,
}

impl Deployment {
    const IMAGE: &str = "registry/o/model-serving@sha256:";

    /// Two services, of which each serves its first revision, and a server that answers for both on the CPU and asks
    /// for a key.
    fn new() -> Option<Self> {
        let tools = Tools::new(&[("gcloud", GCLOUD), ("docker", DOCKER)])?;
        let keys = tools.path("keys");
        fs::write(&keys, "key-of-a-client\n").unwrap();
        let model = repository("models/best.onnx");
        let model = model.to_str().unwrap();
        let server = Server::start(&["--model", model, "--api-key-file", keys.to_str().unwrap()]);
        let url = format!("http://{}", server.address);
        fs::create_dir(tools.path("cloud")).unwrap();
        fs::create_dir_all(tools.path("registry/tags")).unwrap();
        let deployment = Self {
            tools,
            _server: server,
            url,
        };
        deployment.reset();
        Some(deployment)
    }

    fn reset(&self) {
        for service in ["serving", "serving-gpu"] {
            let note = serde_json::json!({
                "images": [format!("{}{}", Self::IMAGE, "1".repeat(64))],
                "traffic": [{"revisionName": "revision-1", "percent": 100}],
            });
            fs::write(self.tools.path("cloud").join(service), note.to_string()).unwrap();
            for note in ["touched", "revision"] {
                let _ = fs::remove_file(self.tools.path(&format!("cloud-run.{service}.{note}")));
            }
        }
    }

    fn step(
        &self,
        name: &str,
        changed: &[(&str, &str)],
    ) -> (bool, String, BTreeMap<String, String>) {
        let script = script_of("cloud-run", "deploy", name);
        let (new, newest) = (digest("2"), digest("3"));
        let mut environment = vec![
            ("SERVICE_CPU", "serving"),
            ("SERVICE_GPU", ""),
            ("REGISTRY", "registry"),
            IMAGE,
            ("ENVIRONMENT", "staging"),
            ("CPU", &new),
            ("GPU", &newest),
            ("URL", &self.url),
            ("IDENTITY_CPU", "token"),
            ("IDENTITY_GPU", "token"),
            ("API_KEY_SECRET", "projects/p/secrets/keys/versions/1"),
        ];
        environment.extend(changed);
        self.tools.run(&script, &environment)
    }

    /// A deployment, as the workflow's steps make it, and whether it succeeded.
    fn run(&self, changed: &[(&str, &str)]) -> (bool, String) {
        self.reset();
        let mut all = String::new();
        let mut good = true;
        for step in [
            "See what serves now",
            "Make revisions that get no traffic, and predict with them",
            "Give them the traffic",
        ] {
            let (worked, printed, _) = self.step(step, changed);
            all += &printed;
            good &= worked;
            if !worked {
                let (_, printed, _) = self.step("Put back what was", changed);
                return (false, all + &printed);
            }
        }
        (good, all)
    }

    /// The last digit of the template's image, and who has the traffic or the tag.
    fn state(&self, service: &str) -> (String, Vec<String>) {
        let note: Value =
            serde_json::from_str(&self.tools.text(&format!("cloud/{service}"))).unwrap();
        let image = text(note["images"].as_array().unwrap().last().unwrap());
        let traffic = note["traffic"].as_array().unwrap().iter().map(|target| {
            let revision = text(&target["revisionName"]);
            match target.get("tag") {
                Some(tag) => format!("{revision}:{}", text(tag)),
                None => format!("{revision}={}", target["percent"]),
            }
        });
        (image[image.len() - 1..].to_owned(), traffic.collect())
    }
}

#[test]
fn a_revision_gets_traffic_after_it_has_predicted_and_not_otherwise() {
    let Some(deployment) = Deployment::new() else {
        return;
    };
    let state = |traffic: &[&str], image: &str| {
        let traffic = traffic.iter().map(|it| (*it).to_owned()).collect();
        (image.to_owned(), traffic)
    };
    let (worked, printed) = deployment.run(&[]);
    assert!(worked, "{printed}");
    let served = state(&["revision-2:candidate", "revision-2=100"], "2");
    assert_eq!(deployment.state("serving"), served);
    assert!(printed.contains("::add-mask::key-of-a-client"), "{printed}");
    // The next one takes the tag, and what failed before it is not in its way.
    let before = state(&["revision-1=100"], "1");
    let nowhere = "http://127.0.0.1:9";
    let new = format!("{}{}", Deployment::IMAGE, "2".repeat(64));
    for (why, changed) in [
        ("it is not ready", ("NOT_READY", new.as_str())),
        ("it does not answer", ("CANDIDATE_URL", nowhere)),
        (
            "it predicts something else",
            ("PREDICT_CHECK", ".outputs.label == [8]"),
        ),
        ("it asks for a key", ("API_KEY_SECRET", "")),
        ("the service does not answer", ("SERVICE_URL", nowhere)),
    ] {
        let (worked, printed) = deployment.run(&[changed]);
        assert!(!worked, "{why}: {printed}");
        assert_eq!(
            deployment.state("serving"),
            before,
            "{why}, and it was not put back: {printed}"
        );
    }
    // The server is on the CPU, so that this one fails; the other one had predicted.
    let (worked, printed) = deployment.run(&[("SERVICE_GPU", "serving-gpu")]);
    assert!(!worked, "it is on another device: {printed}");
    for service in ["serving", "serving-gpu"] {
        assert_eq!(
            deployment.state(service),
            before,
            "two services are deployed by half: {printed}"
        );
    }
    let (worked, printed, _) = deployment.step(
        "Make revisions that get no traffic, and predict with them",
        &[("CPU", "latest")],
    );
    assert!(
        !worked && printed.contains("is not an image by digest"),
        "{printed}"
    );
    // Of a revision that others left as the newest, the image that serves is not taken.
    deployment.reset();
    let other = serde_json::json!({"images": ["a@sha256:4", "b@sha256:5"],
        "traffic": [{"revisionName": "revision-1", "percent": 90}, {"revisionName": "revision-2", "percent": 10}]});
    fs::write(deployment.tools.path("cloud/serving"), other.to_string()).unwrap();
    assert!(deployment.step("See what serves now", &[]).0);
    let noted = |what: &str| deployment.tools.text(&format!("cloud-run.serving.{what}"));
    assert_eq!(noted("image"), "a@sha256:4\n");
    assert_eq!(noted("traffic"), "revision-1=90,revision-2=10\n");
    // What was not touched is left alone.
    assert!(deployment.step("Put back what was", &[]).0);
    let last = cleanup();
    assert!(last.contains("failure() || cancelled()"), "{last}");
}

/// The condition of the step that puts back.
fn cleanup() -> String {
    let cloud_run = workflow("cloud-run");
    let steps = steps(&cloud_run["jobs"]["deploy"]);
    text(&steps[position(&steps, "deploy-cloud-run.sh undo")]["if"]).to_owned()
}

#[test]
fn nothing_older_than_what_serves_is_deployed_but_by_a_rollback() {
    let Some(deployment) = Deployment::new() else {
        return;
    };
    let git = |arguments: &[&str]| {
        let done = Command::new("git")
            .arg(format!(
                "--git-dir={}",
                deployment.tools.path("git").display()
            ))
            .args(["-c", "user.name=a", "-c", "user.email=a@example.com"])
            .args(arguments)
            .output()
            .expect("git is not installed");
        assert!(done.status.success(), "{arguments:?}: {done:?}");
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    };
    git(&["init", "--quiet", "--bare"]);
    let tree = git(&["hash-object", "-t", "tree", "-w", "/dev/null"]);
    let older = git(&["commit-tree", &tree, "-m", "one"]);
    let newer = git(&["commit-tree", &tree, "-p", &older, "-m", "two"]);
    git(&["update-ref", "refs/heads/main", &newer]);
    assert!(deployment.step("See what serves now", &[]).0);
    let image = digest("1");
    let serves = |commit: &str| {
        let path = deployment.tools.path("registry");
        fs::write(path.join(&image), "{}").unwrap();
        fs::write(path.join(format!("{image}.commit")), commit).unwrap();
    };
    let git_dir = deployment.tools.path("git");
    let asked = |commit: &str, older: &str, says: &str| {
        let changed = [
            ("COMMIT", commit),
            ("OLDER", older),
            ("GIT_DIR", git_dir.to_str().unwrap()),
            ("REGISTRY_SAYS", says),
        ];
        let (worked, printed, outputs) = deployment.step("Is it newer than what serves?", &changed);
        (
            worked,
            outputs.get("go").cloned().unwrap_or_default(),
            printed,
        )
    };
    // Nobody knows what the first image of Terraform was built from.
    let first = asked(&older, "refuse", "");
    assert_eq!((first.0, first.1.as_str()), (true, "true"), "{}", first.2);
    assert!(first.2.contains("that main has not built"), "{}", first.2);
    serves(&newer);
    for (commit, what, worked, go) in [
        (&older, "refuse", false, ""),
        (&older, "leave", true, "false"),
        (&older, "allow", true, "true"),
        (&newer, "refuse", true, "true"),
        (&newer, "leave", true, "true"),
    ] {
        let got = asked(commit, what, "");
        assert_eq!((got.0, got.1.as_str()), (worked, go), "{what}: {}", got.2);
    }
    serves(&older);
    assert_eq!(asked(&newer, "refuse", "").1, "true");
    // Who cannot look does not guess.
    assert!(!asked(&newer, "refuse", UNCLEAR[0]).0);
    for (caller, job, older) in [
        ("docker", "staging", Some("leave")),
        ("deploy", "production", None),
        ("rollback", "production", Some("allow")),
    ] {
        let caller = workflow(caller);
        let given = caller["jobs"][job]["with"]["older"].as_str();
        assert_eq!(given, older, "{job}");
    }
    let cloud_run = workflow("cloud-run");
    assert_eq!(
        cloud_run["on"]["workflow_call"]["inputs"]["older"]["default"],
        "refuse"
    );
    // Where only one deployment is at a time, and before anything is changed.
    let job = &cloud_run["jobs"]["deploy"];
    assert_eq!(
        job["concurrency"]["group"],
        "cloud-run-${{ inputs.environment }}"
    );
    let steps = steps(job);
    let asked = position(&steps, "deploy-cloud-run.sh serves");
    for step in &steps[asked + 1..] {
        let condition = text(&step["if"]);
        assert!(
            condition.starts_with("steps.newer.outputs.go == 'true'") || condition == cleanup(),
            "{step}"
        );
    }
}

/// Images and releases are of use without Cloud Run.
#[test]
fn without_variables_nothing_is_deployed_and_nothing_fails() {
    let Some(deployment) = Deployment::new() else {
        return;
    };
    let asked = |service: &str, account: &str| {
        let (worked, printed, outputs) = deployment.step(
            "Is there a service?",
            &[("SERVICE_CPU", service), ("ACCOUNT", account)],
        );
        (worked, outputs.contains_key("there"), printed)
    };
    let (worked, there, printed) = asked("", "");
    assert!(worked && !there, "{printed}");
    assert!(printed.contains("::warning::NOT DEPLOYED"), "{printed}");
    assert!(deployment.tools.text("summary").contains("Not deployed"));
    assert!(!asked("", "account@example.com").0, "half of the variables");
    let (worked, there, _) = asked("serving", "account@example.com");
    assert!(worked && there);
    let cloud_run = workflow("cloud-run");
    let steps = steps(&cloud_run["jobs"]["deploy"]);
    let asked = steps
        .iter()
        .position(|step| step["id"] == "services")
        .unwrap();
    for step in &steps[asked + 1..] {
        assert!(
            step["if"].as_str().is_some_and(|it| it.contains("steps.")),
            "{step}"
        );
    }
}

#[test]
fn a_rollback_takes_the_images_of_a_version_and_nothing_else() {
    let (one, two) = (digest("1"), digest("2"));
    let Some(tools) = registry(&[&one, &two]) else {
        return;
    };
    for (tag, digest) in [("1.2.3", &one), ("1.2.3-gpu", &two), ("1.2.4", &one)] {
        fs::write(tools.path("registry/tags").join(tag), digest).unwrap();
    }
    // The commit is the checkout's.
    let find = script_of("rollback", "find", "find").replace("git rev-parse HEAD", "echo abc");
    let asked = |name: &str, kind: &str| {
        let reference = format!("refs/{kind}/{name}");
        let environment = [
            ("GITHUB_REF", reference.as_str()),
            ("GITHUB_REF_NAME", name),
            ("GITHUB_REPOSITORY", "O/Model-Serving"),
        ];
        tools.run(&find, &environment)
    };
    let (worked, printed, outputs) = asked("v1.2.3", "tags");
    assert!(worked, "{printed}");
    assert_eq!((&outputs["cpu"], &outputs["gpu"]), (&one, &two));
    for (name, kind) in [("main", "heads"), ("v1.2.4", "tags"), ("v1.2.3", "heads")] {
        assert!(!asked(name, kind).0, "{kind} {name}");
    }
}

/// A registry: each tag is a file with the digest that it stands for, each digest one with its content.
const DOCKER: &str = r#"
registry=$STAND_INS/registry
[ "$1 $2" = "buildx imagetools" ] || exit 9
case $3 in
inspect)
    [ -z "${REGISTRY_SAYS:-}" ] || { echo "ERROR: $REGISTRY_SAYS" >&2; exit 1; }
    raw=
    if [ "$4" = --raw ]; then raw=yes; shift; fi
    case $4 in
    *@*) digest=${4#*@} ;;
    *) digest=$(cat "$registry/tags/${4##*:}" 2> /dev/null) || digest=none ;;
    esac
    [ -e "$registry/$digest" ] || { echo "ERROR: $4: not found" >&2; exit 1; }
    if [ "$*" != "${*%.Image\}\}}" ]; then
        jq --null-input --arg commit "$(cat "$registry/$digest.commit")" \
            '{"linux/amd64": {config: {Labels: {"org.opencontainers.image.revision": $commit}}}}'
    elif [ -n "$raw" ]; then cat "$registry/$digest"; else printf '{"digest": "%s"}\n' "$digest"; fi
    ;;
create)
    tag=${5##*:}
    shift 5
    digest=${1#*@}
    # What is an index already stays what it is.
    if [ ! -e "$registry/$digest" ]; then
        index=$(printf '%s\n' "${@#*@}" | jq --raw-input . | jq --slurp '{manifests: map({digest: .})}')
        digest=sha256:$(sha256sum <<< "$index" | cut -d ' ' -f 1)
        printf '%s\n' "$index" > "$registry/$digest"
    fi
    printf '%s' "$digest" > "$registry/tags/$tag"
    ;;
esac
"#;

/// The script of a step that has this id or name.
fn script_of(file: &str, job: &str, name: &str) -> String {
    let workflow = workflow(file);
    let steps = steps(&workflow["jobs"][job]);
    let step = steps
        .iter()
        .find(|step| step["id"] == name || step["name"] == name);
    let step = step.unwrap_or_else(|| panic!("{file} has no step {name}"));
    text(&step["run"]).to_owned()
}

const IMAGE: (&str, &str) = ("IMAGE", "ghcr.io/o/model-serving");

/// A registry with images of these digests, which no tag names.
fn registry(digests: &[&str]) -> Option<Tools> {
    let tools = Tools::new(&[("docker", DOCKER)])?;
    fs::create_dir_all(tools.path("registry/tags")).unwrap();
    for digest in digests {
        fs::write(tools.path("registry").join(digest), "{}").unwrap();
    }
    Some(tools)
}

fn digest(digit: &str) -> String {
    format!("sha256:{}", digit.repeat(64))
}

/// What a registry says that could not look, and that must not be taken for "there is none".
const UNCLEAR: [&str; 4] = [
    "ghcr.io/o/model-serving: unexpected status from HEAD request: 502 Bad Gateway",
    "failed to do request: dial tcp: lookup ghcr.io: no such host",
    "unexpected status from HEAD request to https://ghcr.io/v2/o/model-serving: 403 Forbidden",
    "denied: denied",
];

#[test]
fn names_of_images_are_never_moved() {
    let (one, two) = (digest("1"), digest("2"));
    let Some(tools) = registry(&[&one, &two]) else {
        return;
    };
    // A version: new, then the same again, as when a job runs a second time, then another image.
    let name = script_of("deploy", "promote", "Name them after the version");
    let named = |cpu: &str, says: &str| {
        let environment = [
            IMAGE,
            ("VERSION", "1.2.3"),
            ("CPU", cpu),
            ("GPU", &two),
            ("REGISTRY_SAYS", says),
        ];
        tools.run(&name, &environment)
    };
    for says in UNCLEAR {
        let (worked, printed, _) = named(&one, says);
        assert!(!worked && printed.contains(says), "{says}: {printed}");
        assert!(!tools.path("registry/tags/1.2.3").exists(), "{says}");
    }
    for _ in 0..2 {
        let (worked, printed, _) = named(&one, "");
        assert!(worked, "{printed}");
        assert_eq!(tools.text("registry/tags/1.2.3"), one);
        assert_eq!(tools.text("registry/tags/1.2.3-gpu"), two);
    }
    let (worked, printed, _) = named(&two, "");
    assert!(!worked && printed.contains("is not moved"), "{printed}");
    let (worked, _, _) = named(&digest("9"), "");
    assert!(!worked, "an image that is not there was named");
    assert_eq!(
        tools.text("registry/tags/1.2.3"),
        one,
        "the version was moved"
    );
}

/// Of a registry that fails once, a version could lose its image.
#[test]
fn only_a_registry_that_says_so_has_no_image() {
    let Some(tools) = registry(&[]) else {
        return;
    };
    let look = |flag: &str, says: &str| {
        let script = format!("scripts/image-digest.sh {flag} ghcr.io/o/model-serving:1.2.3");
        tools.run(&script, &[("REGISTRY_SAYS", says)])
    };
    for says in [
        "ghcr.io/o/model-serving:1.2.3: not found",
        "failed to resolve: ghcr.io/o/model-serving:1.2.3: not found",
        "manifest unknown",
        "NAME_UNKNOWN: name unknown: repository name not known to registry",
    ] {
        let (worked, printed, _) = look("", says);
        assert!(worked && printed.is_empty(), "{says}: {printed}");
    }
    for says in UNCLEAR {
        assert!(!look("", says).0, "{says}");
    }
    // Of a package that nobody has pushed, GitHub's registry says no more than that.
    for (says, none) in UNCLEAR.into_iter().zip([false, false, true, true]) {
        assert_eq!(look("--package-may-be-new", says).0, none, "{says}");
    }
}

#[test]
fn a_job_that_runs_again_finishes_what_it_began_and_takes_what_is_finished() {
    let Some(tools) = registry(&[]) else {
        return;
    };
    fs::create_dir(tools.path("digests")).unwrap();
    let build = |digits: &[&str]| {
        for digit in digits {
            fs::write(tools.path("digests").join(digit.repeat(64)), "").unwrap();
        }
    };
    let script = |name: &str| script_of("docker", "publish", name);
    let tag = ("TAG", "sha-abc");
    let before = || {
        let (worked, printed, outputs) = tools.run(&script("before"), &[IMAGE, tag]);
        assert!(worked, "{printed}");
        outputs["digest"].clone()
    };
    let push = || {
        let script = script("push").replace("digests/*", "\"$STAND_INS\"/digests/*");
        tools.run(&script, &[IMAGE, tag, ("PLATFORMS", "2")])
    };
    let name = |digest: &str| {
        let script = script("Name it after the commit");
        tools.run(&script, &[IMAGE, tag, ("DIGEST", digest)])
    };
    // A platform is missing.
    build(&["3"]);
    let (worked, printed, _) = push();
    assert!(!worked && printed.contains("1 images of 2"), "{printed}");
    build(&["4"]);
    // The first attempt dies after it has pushed, for example in a scan.
    assert_eq!(before(), "");
    let (worked, printed, first) = push();
    assert!(worked, "{printed}");
    assert!(!tools.path("registry/tags/sha-abc").exists());
    // The second one ends.
    assert_eq!(
        before(),
        "",
        "an unfinished image is taken for a finished one"
    );
    let (worked, printed, second) = push();
    assert!(worked && second == first, "{printed}");
    let (worked, printed, _) = name(&second["digest"]);
    assert!(worked, "{printed}");
    // From then on it is what it is.
    assert_eq!(before(), second["digest"]);
    let other = digest("5");
    let index = r#"{"manifests": [{"digest": "sha256:6"}]}"#;
    fs::write(tools.path("registry").join(&other), index).unwrap();
    let (worked, printed, _) = name(&other);
    assert!(!worked && printed.contains("is not moved"), "{printed}");
    // The name of what is unfinished can be moved by others, which then is not signed.
    let moved = script("push")
        .replace("digests/*", "\"$STAND_INS\"/digests/*")
        .replace(
            "digest=$(scripts",
            "printf %s \"$OTHER\" > \"$STAND_INS/registry/tags/unchecked-$TAG\"; digest=$(scripts",
        );
    let (worked, printed, _) =
        tools.run(&moved, &[IMAGE, tag, ("PLATFORMS", "2"), ("OTHER", &other)]);
    assert!(
        !worked && printed.contains("which is not what was built"),
        "{printed}"
    );
    let (worked, printed, _) = {
        let script = script("before");
        tools.run(&script, &[IMAGE, tag, ("REGISTRY_SAYS", UNCLEAR[0])])
    };
    assert!(!worked && printed.contains(UNCLEAR[0]), "{printed}");
}

#[test]
fn what_main_has_made_is_found_by_its_commit() {
    let (one, two) = (digest("1"), digest("2"));
    let Some(tools) = registry(&[&one, &two]) else {
        return;
    };
    for (tag, digest) in [("sha-abc", &one), ("sha-abc-gpu", &two)] {
        fs::write(tools.path("registry/tags").join(tag), digest).unwrap();
    }
    // By the name without capitals.
    let look = script_of("docker", "once", "find");
    let environment = [
        ("GITHUB_SHA", "abc"),
        ("GITHUB_REPOSITORY", "O/Model-Serving"),
    ];
    let (worked, printed, outputs) = tools.run(&look, &environment);
    assert!(worked, "{printed}");
    assert_eq!(outputs["image"], "ghcr.io/o/model-serving");
    assert_eq!((&outputs["cpu"], &outputs["gpu"]), (&one, &two));

    // What a version is made of, and what to do where main has built nothing.
    let find = script_of("deploy", "promote", "find");
    let environment = [IMAGE, ("COMMIT", "abc")];
    let (worked, printed, outputs) = tools.run(&find, &environment);
    assert!(worked, "{printed}");
    assert_eq!((&outputs["cpu"], &outputs["gpu"]), (&one, &two));
    let find_all = script_of("docker", "images", "find");
    let both = [IMAGE, ("GITHUB_SHA", "abc")];
    let (worked, printed, outputs) = tools.run(&find_all, &both);
    assert!(worked, "{printed}");
    assert_eq!((&outputs["cpu"], &outputs["gpu"]), (&one, &two));
    fs::remove_file(tools.path("registry/tags/sha-abc-gpu")).unwrap();
    let (worked, printed, _) = tools.run(&find, &environment);
    assert!(
        !worked && printed.contains("let docker.yml finish for this commit"),
        "{printed}"
    );
    assert!(!tools.run(&find_all, &both).0);
}

#[test]
fn a_release_says_what_the_changelog_says_of_its_version() {
    let Some(tools) = Tools::new(&[]) else {
        return;
    };
    let changelog = tools.path("CHANGELOG.md");
    let text = "# Changelog\n\n## [Unreleased]\n\n- new\n\n## [1.2.30] - 2026-02-01\n\n- thirty\n\n\
                ## 1.2.3\n\n### Fixed\n\n- three\n\n## 1.2.2\n\n## 1.2.1\n\n- one\n";
    fs::write(&changelog, text).unwrap();
    let notes = |version: &str| {
        let script = format!("scripts/release-notes.sh {version}");
        tools.run(&script, &[("CHANGELOG", changelog.to_str().unwrap())])
    };
    assert_eq!(notes("1.2.3").1, "\n### Fixed\n\n- three\n");
    assert_eq!(notes("1.2.30").1, "\n- thirty\n");
    for version in ["1.2.2", "1.2.4"] {
        let (worked, printed, _) = notes(version);
        assert!(!worked && printed.contains("says nothing"), "{printed}");
    }
    // Known before anything has a name.
    let deploy = workflow("deploy");
    let steps = steps(&deploy["jobs"]["promote"]);
    assert!(position(&steps, "release-notes.sh") < position(&steps, "name-image.sh"));
    assert!(text_of_job("deploy", "release").contains("release-notes.sh"));
}

#[test]
fn the_changelog_has_what_comes_on_top_and_this_version_below() {
    let changelog = read("CHANGELOG.md");
    let mut headings = changelog
        .lines()
        .filter_map(|line| line.strip_prefix("## "));
    assert_eq!(headings.next(), Some("[Unreleased]"));
    let newest = headings.next().unwrap();
    let version = format!("[{}] - ", env!("CARGO_PKG_VERSION"));
    let date = newest.strip_prefix(&version);
    let date = date.unwrap_or_else(|| panic!("the newest release is {newest}, not {version}"));
    let numbers: Vec<&str> = date.split('-').collect();
    let digits: Vec<usize> = numbers.iter().map(|number| number.len()).collect();
    assert_eq!(digits, [4, 2, 2], "{date}");
    assert!(
        date.bytes().all(|b| b.is_ascii_digit() || b == b'-'),
        "{date}"
    );
}

/// All scripts of a job.
fn text_of_job(file: &str, job: &str) -> String {
    let workflow = workflow(file);
    let steps = steps(&workflow["jobs"][job]);
    steps
        .iter()
        .filter_map(|step| step["run"].as_str())
        .collect()
}

#[test]
fn a_skipped_check_fails_where_that_is_asked_for() {
    let make = [("fake-make", "echo 'SKIPPED: there is no such tool'\n")];
    let Some(tools) = Tools::new(&make) else {
        return;
    };
    let make = tools.path("fake-make");
    let run = |fail: &str| {
        let script = "python3 -B scripts/run-stages.py unit doc";
        tools.run(
            script,
            &[("MAKE", make.to_str().unwrap()), ("FAIL_ON_SKIPPED", fail)],
        )
    };
    let (worked, printed, _) = run("");
    assert!(worked && printed.contains("all checks passed"), "{printed}");
    let (worked, printed, _) = run("1");
    assert!(
        !worked && printed.contains("the checks above were skipped"),
        "{printed}"
    );
}

/// The archive that people download, made of this build instead of an image's.
#[test]
fn the_program_of_a_release_serves_from_wherever_it_was_unpacked() {
    let Some(tools) = Tools::new(&[]) else {
        return;
    };
    let (tree, root) = (tools.path("tree"), tools.path("root"));
    for folder in [
        "tree/scripts",
        "tree/packaging/debian",
        "tree/packaging/systemd",
        "root/completions",
        "root/man",
        "root/lib",
        "root/doc/onnxruntime",
    ] {
        fs::create_dir_all(tools.path(folder)).unwrap();
    }
    for file in [
        "scripts/pack-release.sh",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "packaging/debian/default",
        "packaging/systemd/model-serving.service",
    ] {
        fs::copy(repository(file), tree.join(file)).unwrap();
    }
    let program = env!("CARGO_BIN_EXE_model-serving");
    fs::copy(program, root.join("model-serving")).unwrap();
    let library = fs::canonicalize(repository(".onnxruntime/libonnxruntime.so")).unwrap();
    fs::copy(library, root.join("lib/libonnxruntime.so.1")).unwrap();
    std::os::unix::fs::symlink("libonnxruntime.so.1", root.join("lib/libonnxruntime.so")).unwrap();
    for file in [
        "completions/model-serving.bash",
        "man/model-serving.1",
        "doc/onnxruntime/LICENSE",
    ] {
        fs::write(root.join(file), "text\n").unwrap();
    }
    let name = "model-serving-1.2.3-linux-amd64";
    let pack = |folder: &Path| {
        let script = format!(
            "{}/scripts/pack-release.sh tarball 1.2.3 amd64 {} {}",
            tree.display(),
            root.display(),
            folder.display()
        );
        let (worked, printed, _) = tools.run(&script, &[("SOURCE_DATE_EPOCH", "1700000000")]);
        assert!(worked, "{printed}");
        folder.join(format!("{name}.tar.gz"))
    };
    let archive = pack(&tools.path("first"));
    let again = pack(&tools.path("second"));
    assert!(
        fs::read(&archive).unwrap() == fs::read(again).unwrap(),
        "the same files gave another archive"
    );
    let unpacked = Command::new("tar")
        .arg("-xzf")
        .arg(&archive)
        .arg("-C")
        .arg(tools.folder.path())
        .status();
    assert!(unpacked.unwrap().success());
    let unpacked = tools.path(name);
    for file in [
        "doc/LICENSE-MIT",
        "doc/onnxruntime/LICENSE",
        "man/model-serving.1",
        "systemd/default",
        "systemd/model-serving.service",
    ] {
        assert!(unpacked.join(file).is_file(), "{file} is missing");
    }
    // In a folder where no other library could be found.
    let mut command = Command::new(unpacked.join("model-serving"));
    command
        .args(["--port", "0", "--host", "127.0.0.1", "--model"])
        .arg(repository("models/best.onnx"))
        .current_dir(tools.path("second"))
        .env_clear();
    let server = Server::spawn_command(command);
    let ready = server.log.wait_for(|line| line["message"] == "ready");
    assert!(ready.is_some(), "{:?}", server.log.lines());
    let check = format!("scripts/check-deployment.sh http://{} cpu", server.address);
    let (worked, printed, _) = tools.run(&check, &[]);
    assert!(worked, "{printed}");
}
