//! Runs critest against a socket and judges its report by the skip list.
//!
//! The listed specs run too: a list is true only as long as what it names does not pass. And a
//! spec that skips itself without being listed has failed, or a runtime could pass by reporting
//! fewer features.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde::Deserialize;

use crate::{process::Process, tools};

/// How many of v1.36.0's 117 specs run on a Linux host without SELinux and AppArmor.
pub const SPECS_THAT_RUN: usize = 108;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// `unix://...`
    pub endpoint: String,
    /// Ginkgo's focus, for development; nothing runs everything.
    pub focus: Option<String>,
    /// Specs at once.
    pub parallel: usize,
    /// Order of the specs.
    pub seed: u64,
    /// More flags for critest.
    pub more: Vec<String>,
    /// Where the reports go.
    pub out: PathBuf,
}

/// How one spec went, by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It ran and did not pass: the message.
    Failed(String),
    /// It skipped itself: the message.
    SkippedItself(String),
}

/// A spec of the report.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its full name: containers and leaf, separated by single blanks.
    pub name: String,
    /// How it went.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    #[serde(default)]
    spec_reports: Option<Vec<SpecReport>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    #[serde(default)]
    leaf_node_type: String,
    #[serde(default)]
    leaf_node_text: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    run_time: u64,
    #[serde(default)]
    failure: Failure,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

/// Runs the suite to its end and reads its report.
///
/// # Errors
/// When it cannot be run, or ends without a report.
pub fn run(options: &Options) -> io::Result<(Vec<Spec>, Duration)> {
    fs::create_dir_all(&options.out)?;
    let report = options.out.join("report.json");
    let _old = fs::remove_file(&report);
    let mut command = Command::new(tools::program("cri-tools", "critest")?);
    command
        .arg(format!(
            "--config={}",
            options.out.join("no-crictl.yaml").display()
        ))
        .arg(format!("--runtime-endpoint={}", options.endpoint))
        .arg(format!("--image-endpoint={}", options.endpoint))
        .arg("--ginkgo.flake-attempts=1")
        .arg("--ginkgo.randomize-all")
        .arg(format!("--ginkgo.seed={}", options.seed))
        .arg("--ginkgo.no-color")
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .arg(format!(
            "--ginkgo.junit-report={}",
            options.out.join("junit.xml").display()
        ));
    if let Some(focus) = &options.focus {
        command.arg(format!("--ginkgo.focus={focus}"));
    }
    // Ginkgo refuses a process that was told of parallelism, even of one: then nothing is said.
    if options.parallel > 1 {
        command.arg(format!("--parallel={}", options.parallel));
        let mut path = tools::get("ginkgo")?.join("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        command.env("PATH", path);
    }
    command.args(&options.more);
    let log = options.out.join("critest.log");
    let _old = fs::remove_file(&log);
    let began = Instant::now();
    let mut process = Process::start(&mut command, &log)?;
    let ended = process.wait(Duration::from_secs(20 * 60));
    let wall = began.elapsed();
    let read = fs::read_to_string(&report);
    match (ended, read) {
        (Ok(_), Ok(text)) => Ok((parse(&text)?, wall)),
        (Err(error), _) => Err(error),
        (_, Err(error)) => Err(io::Error::other(format!(
            "critest left no report ({error}):\n{}",
            process.log_tail()
        ))),
    }
}

/// The specs of a ginkgo JSON report that were not filtered away.
///
/// # Errors
/// When it is no such report.
pub fn parse(text: &str) -> io::Result<Vec<Spec>> {
    let suites: Vec<Suite> = serde_json::from_str(text)?;
    let reports = suites
        .into_iter()
        .flat_map(|suite| suite.spec_reports.unwrap_or_default());
    let mut specs = Vec::new();
    for report in reports.filter(|report| report.leaf_node_type == "It") {
        let message = report.failure.message;
        let outcome = match report.state.as_str() {
            "passed" => Outcome::Passed,
            // Filtered away by focus, or a benchmark: no message.
            "skipped" if message.is_empty() => continue,
            "skipped" | "pending" => Outcome::SkippedItself(message),
            other => Outcome::Failed(format!("{other}: {message}")),
        };
        let mut words = report.container_hierarchy_texts.unwrap_or_default();
        words.push(report.leaf_node_text);
        specs.push(Spec {
            name: words.join(" "),
            outcome,
            took: Duration::from_nanos(report.run_time),
        });
    }
    Ok(specs)
}

/// The skip list: spec name, tab, reason.
///
/// # Errors
/// When a line has no reason, or a name is listed twice.
pub fn skip_list(path: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut list = BTreeMap::new();
    for line in fs::read_to_string(path)?
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
    {
        let (name, reason) = line.split_once('\t').unwrap_or((line, ""));
        if reason.trim().is_empty()
            || list
                .insert(name.to_owned(), reason.trim().to_owned())
                .is_some()
        {
            return Err(io::Error::other(format!(
                "{}: no reason, or listed twice: {name}",
                path.display()
            )));
        }
    }
    Ok(list)
}

/// The judgement over a run.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Passed and not listed.
    pub passed: usize,
    /// Listed, and failed or skipped themselves as the list says.
    pub skipped: usize,
    /// Each with why.
    pub failed: Vec<String>,
    /// How many ran: did not skip themselves, or did so for a feature that crisp lacks.
    pub ran: usize,
}

/// Holds the outcomes against the list. `whole` says that nothing was filtered away.
#[must_use]
pub fn judge(specs: &[Spec], list: &BTreeMap<String, String>, whole: bool) -> Verdict {
    let mut verdict = Verdict::default();
    for spec in specs {
        let listed = list.get(&spec.name);
        let lacks = listed.is_some_and(|reason| reason.starts_with("host:"));
        // A spec that asks for a feature before it runs, and is listed because crisp lacks that
        // feature, counts as one that ran and failed.
        let ran = !matches!(spec.outcome, Outcome::SkippedItself(_));
        verdict.ran += usize::from(ran || (listed.is_some() && !lacks));
        match (&spec.outcome, listed) {
            (Outcome::Passed, None) => verdict.passed += 1,
            // The host has what others lack.
            (Outcome::Passed, Some(_)) if lacks => verdict.passed += 1,
            (Outcome::Passed, Some(reason)) => {
                verdict.failed.push(format!(
                    "{}\n    passes, but is listed: {reason}",
                    spec.name
                ));
            }
            // What a host lacks makes a spec skip itself; failing is something else.
            (Outcome::Failed(message), Some(_)) if lacks => {
                verdict.failed.push(describe(spec, message))
            }
            (_, Some(_)) => verdict.skipped += 1,
            (Outcome::Failed(message), None) => verdict.failed.push(describe(spec, message)),
            (Outcome::SkippedItself(message), None) => {
                verdict.failed.push(format!(
                    "{}\n    skipped itself and is not listed: {message}",
                    spec.name
                ));
            }
        }
    }
    if whole {
        for name in list
            .keys()
            .filter(|name| !specs.iter().any(|spec| &spec.name == *name))
        {
            verdict
                .failed
                .push(format!("{name}\n    is listed, but there is no such spec"));
        }
        if verdict.ran < SPECS_THAT_RUN {
            verdict
                .failed
                .push(format!("{} specs ran, {SPECS_THAT_RUN} must", verdict.ran));
        }
    }
    verdict
}

fn describe(spec: &Spec, message: &str) -> String {
    let short: String = message.chars().take(600).collect();
    format!(
        "{}\n    {} ({:.1} s)",
        spec.name,
        short.replace('\n', "\n    "),
        spec.took.as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, outcome: Outcome) -> Spec {
        Spec {
            name: name.to_owned(),
            outcome,
            took: Duration::ZERO,
        }
    }

    fn failed() -> Outcome {
        Outcome::Failed("why".to_owned())
    }

    fn skipped() -> Outcome {
        Outcome::SkippedItself("why".to_owned())
    }

    #[test]
    fn every_outcome_against_every_listing() {
        let list = BTreeMap::from([
            ("listed".to_owned(), "the next issue".to_owned()),
            ("host".to_owned(), "host: no AppArmor".to_owned()),
        ]);
        let table = [
            ("free", Outcome::Passed, (1, 0, 0)),
            ("free", failed(), (0, 1, 0)),
            ("free", skipped(), (0, 1, 0)),
            ("listed", Outcome::Passed, (0, 1, 0)),
            ("listed", failed(), (0, 0, 1)),
            ("listed", skipped(), (0, 0, 1)),
            ("host", Outcome::Passed, (1, 0, 0)),
            ("host", failed(), (0, 1, 0)),
            ("host", skipped(), (0, 0, 1)),
        ];
        for (name, outcome, expected) in table {
            let verdict = judge(&[spec(name, outcome.clone())], &list, false);
            let got = (verdict.passed, verdict.failed.len(), verdict.skipped);
            assert_eq!(got, expected, "{name} {outcome:?}");
        }
    }

    #[test]
    fn a_whole_run_with_too_few_specs_or_unknown_names_fails() {
        let list = BTreeMap::from([("gone".to_owned(), "reason".to_owned())]);
        assert_eq!(
            judge(&[spec("a", Outcome::Passed)], &list, true)
                .failed
                .len(),
            2
        );
    }

    #[test]
    fn reports_are_read_without_what_was_filtered_away() {
        let text = r#"[{"SpecReports":[
            {"ContainerHierarchyTexts":null,"LeafNodeType":"BeforeSuite","State":"passed"},
            {"ContainerHierarchyTexts":["[k8s.io] Pod","in it"],"LeafNodeType":"It","LeafNodeText":"runs","State":"passed","RunTime":5},
            {"ContainerHierarchyTexts":["x"],"LeafNodeType":"It","LeafNodeText":"benchmark","State":"skipped"},
            {"ContainerHierarchyTexts":["x"],"LeafNodeType":"It","LeafNodeText":"self","State":"skipped","Failure":{"Message":"no"}},
            {"ContainerHierarchyTexts":["x"],"LeafNodeType":"It","LeafNodeText":"dies","State":"panicked","Failure":{"Message":"nil"}}
        ]}]"#;
        let specs = parse(text).expect("a report");
        let seen: Vec<(&str, &Outcome)> = specs
            .iter()
            .map(|spec| (spec.name.as_str(), &spec.outcome))
            .collect();
        assert_eq!(
            seen,
            [
                ("[k8s.io] Pod in it runs", &Outcome::Passed),
                ("x self", &Outcome::SkippedItself("no".to_owned())),
                ("x dies", &Outcome::Failed("panicked: nil".to_owned())),
            ]
        );
    }
}
