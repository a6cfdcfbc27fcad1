//! What is written and what is not.

use super::source::{all, root};

fn report(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn nothing_is_left_for_later() {
    let mut problems = Vec::new();
    for source in all() {
        for word in ["todo!", "unimplemented!", "dbg!"] {
            for line in source.lines_with(word) {
                problems.push(format!("{}:{line}: {word}", source.path));
            }
        }
        for (i, line) in source.code.lines().enumerate() {
            // Only generated code may be let off as a whole.
            let whole = line.contains("#![allow(")
                && !source.is_test()
                && source.path != "src/cri/proto.rs";
            if line.contains("#[ignore") || whole {
                problems.push(format!("{}:{}: {}", source.path, i + 1, line.trim()));
            }
        }
        // Spelled apart, so that this file does not find itself.
        let marks = [
            concat!("FIX", "ME"),
            concat!("TO", "DO"),
            concat!("XX", "X"),
        ];
        for (i, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                problems.push(format!("{}:{}: {}", source.path, i + 1, line.trim()));
            }
        }
    }
    report(problems);
}

#[test]
fn every_file_says_what_it_is() {
    let silent = all()
        .into_iter()
        .filter(|s| !s.is_test() && !s.text.starts_with("//! "));
    report(
        silent
            .map(|s| format!("{} does not begin with a module comment", s.path))
            .collect(),
    );
}

#[test]
fn names_are_nouns_that_mean_something() {
    let empty = [
        "utils", "util", "common", "helpers", "helper", "manager", "misc", "impl",
    ];
    let mut problems = Vec::new();
    for source in all() {
        let stem = source.path.trim_end_matches(".rs");
        let parts: Vec<&str> = stem.split('/').collect();
        if parts.iter().any(|part| empty.contains(part)) {
            problems.push(format!("{}: find the noun", source.path));
        }
        if let [.., parent, own] = parts[..]
            && parent == own
        {
            problems.push(format!("{}: named like its directory", source.path));
        }
    }
    report(problems);
}

#[test]
fn the_main_function_is_short() {
    let text = std::fs::read_to_string(root().join("src/main.rs")).unwrap();
    assert!(text.lines().count() <= 60);
}

#[test]
fn errors_have_types() {
    let mut problems = Vec::new();
    for source in all().into_iter().filter(|s| !s.is_test()) {
        for (i, line) in source.code.lines().enumerate() {
            let line = line.trim();
            if line.starts_with("Other(String)") || line.starts_with("Message(String)") {
                problems.push(format!("{}:{}: {line}", source.path, i + 1));
            }
        }
    }
    report(problems);
}
