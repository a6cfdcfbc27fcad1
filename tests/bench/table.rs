//! The tables.

use crisp_harness::{cri::v1::StatusRequest, pods::Pods};
use serde_json::Value;
use tonic::Status;

use crate::operations::Samples;

/// Rows: name, and the budget for crisp where there is one.
const ROWS: &[(&str, &str)] = &[
    ("RunPodSandbox", ""),
    ("CreateContainer", ""),
    ("StartContainer", ""),
    ("Run + Create + Start", "CNI + 8 (first mark CNI + 15)"),
    ("  of it CNI ADD", ""),
    ("ExecSync true", "1.5"),
    ("ExecSync 8 at once, per s", "1500"),
    ("StopContainer", "3"),
    ("RemoveContainer", ""),
    ("StopPodSandbox", "CNI + 10"),
    ("  of it CNI DEL", ""),
    ("RemovePodSandbox", ""),
    ("40 pods 4 at once, pods/s", "100 with native network"),
    ("ListContainerStats of 40", "5"),
    ("restart to 40 served", "100"),
    ("log, 100-byte lines, MB/s", "400"),
    ("daemon idle, MB", ""),
    ("daemon with 40 pods, MB", "20"),
    ("  of it anonymous, MB", ""),
    ("helpers a pod (PSS), MB", "0.3"),
];

/// What stands in a row for a runtime.
fn cell(row: &str, samples: &Samples) -> String {
    match samples.median_p95(row) {
        Some((value, _)) if row.ends_with(", MB") => format!("{value:.2}"),
        Some((value, _)) if row.contains("/s") || row.contains("per s") => format!("{value:.1}"),
        Some((median, p95)) => format!("{median:.1} / {p95:.1}"),
        None => samples.noted(row).unwrap_or("-").to_owned(),
    }
}

/// Prints what was measured, a column a runtime.
pub fn print(columns: &[(&str, &Samples)], pods: usize) {
    println!(
        "\n{pods} pods each, in turn; milliseconds as median / 95th percentile, or as the row says"
    );
    print!("{:<28}", "");
    for (name, _) in columns {
        print!(" {name:>18}");
    }
    println!("   budget of crisp");
    for (row, budget) in ROWS {
        print!("{row:<28}");
        for (_, samples) in columns {
            print!(" {:>18}", cell(row, samples));
        }
        println!("   {budget}");
    }
    for (name, samples) in columns {
        for (calls, plugins) in [
            ("Run + Create + Start", "  of it CNI ADD"),
            ("StopPodSandbox", "  of it CNI DEL"),
        ] {
            let (all, network) = (samples.median_p95(calls), samples.median_p95(plugins));
            if let (Some((all, _)), Some((network, _))) = (all, network) {
                println!(
                    "{name}: {calls} without CNI: {:.1} ms at the median",
                    all - network
                );
            }
        }
    }
}

/// Prints the steps inside crisp's calls, as its Status tells them.
///
/// # Errors
/// The daemon's.
pub async fn steps(pods: &Pods) -> Result<(), Status> {
    let answer = pods
        .cri
        .runtime
        .clone()
        .status(StatusRequest { verbose: true })
        .await?
        .into_inner();
    let steps: Value = answer
        .info
        .get("steps")
        .map_or(Ok(Value::Null), |text| serde_json::from_str(text))
        .map_err(|error| Status::internal(format!("info of steps is no JSON: {error}")))?;
    let Some(steps) = steps.as_object() else {
        println!("\nthis daemon tells no steps");
        return Ok(());
    };
    println!(
        "\n{:<28} {:>8} {:>12} {:>12}",
        "step inside crisp", "count", "median ms", "95th ms"
    );
    for (name, step) in steps {
        let milliseconds = |key: &str| step[key].as_f64().unwrap_or_default() / 1e3;
        println!(
            "{name:<28} {:>8} {:>12.2} {:>12.2}",
            step["count"],
            milliseconds("median_us"),
            milliseconds("p95_us")
        );
    }
    Ok(())
}
