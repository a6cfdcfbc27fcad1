//! Files and functions stay small enough to be read. Those that are not yet are listed, and the list
//! may only shrink.

use std::collections::BTreeMap;

use super::source::{Source, all, root};

/// Longest file in lines.
const FILE: usize = 700;
/// Longest function in lines, from `fn` to its closing brace.
const FUNCTION: usize = 100;
/// The list: what, lines.
const OUTLIERS: &str = "tests/tidy/outliers.txt";

/// Everything that is longer than it should be.
fn outliers() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for source in all() {
        let lines = source.text.lines().count();
        if lines > FILE {
            found.insert(source.path.clone(), lines);
        }
        for (name, lines) in functions(&source)
            .into_iter()
            .filter(|(_, l)| *l > FUNCTION)
        {
            found.insert(format!("{}::{name}", source.path), lines);
        }
    }
    found
}

/// Name and length of every function with a body.
fn functions(source: &Source) -> Vec<(String, usize)> {
    let code = &source.code;
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let before = code[..at].chars().next_back();
        let name: String = code[at + 3..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') || name.is_empty() {
            continue;
        }
        if let Some(end) = body_end(&code[at..]) {
            found.push((name, code[at..at + end].lines().count()));
        }
    }
    found
}

/// Where the body of the function ends whose text starts here; none for a declaration.
fn body_end(code: &str) -> Option<usize> {
    let (mut round, mut curly) = (0_usize, 0_usize);
    for (i, c) in code.char_indices() {
        match c {
            '(' | '[' => round += 1,
            ')' | ']' => round = round.checked_sub(1)?,
            ';' if round == 0 && curly == 0 => return None,
            '{' => curly += 1,
            '}' => {
                curly = curly.checked_sub(1)?;
                if curly == 0 && round == 0 {
                    return Some(i + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn long_files_and_functions_are_listed_and_the_list_only_shrinks() {
    let text = std::fs::read_to_string(root().join(OUTLIERS)).unwrap();
    let listed: BTreeMap<String, usize> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (lines, what) = line.split_once(' ').unwrap();
            (what.to_owned(), lines.parse().unwrap())
        })
        .collect();
    let found = outliers();
    let mut problems = Vec::new();
    for (what, lines) in &found {
        match listed.get(what) {
            None => problems.push(format!("{what} has {lines} lines: split it by topic")),
            Some(limit) if lines > limit => {
                problems.push(format!(
                    "{what} grew from {limit} to {lines} lines: split it"
                ));
            }
            Some(_) => {}
        }
    }
    for what in listed.keys().filter(|what| !found.contains_key(*what)) {
        problems.push(format!(
            "{what} is small enough now: strike it from {OUTLIERS}"
        ));
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn functions_are_measured() {
    let text = "fn short(a: [u8; 2]) -> u8 {\n    a[0]\n}\ntrait T {\n    fn none(&self);\n}\n";
    let source = Source {
        path: String::new(),
        text: text.to_owned(),
        code: text.to_owned(),
    };
    assert_eq!(functions(&source), [("short".to_owned(), 3)]);
}
