//! The project's Rust files, and a view of them without comments and literals.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A Rust file of the project.
pub struct Source {
    /// Relative to the project's directory, with `/`.
    pub path: String,
    /// As it is.
    pub text: String,
    /// The same with every comment, string and character literal blanked; lines stay where they are.
    pub code: String,
}

impl Source {
    /// A file that is only compiled for tests.
    pub fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        self.path.starts_with("tests/")
            || self.path.contains("/tests/")
            || name.ends_with("tests.rs")
    }

    /// The numbers of lines whose code has this word, path or call in it.
    pub fn lines_with(&self, word: &str) -> Vec<usize> {
        let lines = self.code.lines().enumerate();
        lines
            .filter(|(_, line)| has_word(line, word))
            .map(|(i, _)| i + 1)
            .collect()
    }
}

/// The project's directory.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file that is tracked or about to be; without git, every one below the known places.
pub fn all() -> Vec<Source> {
    let mut files = Vec::new();
    for place in ["src", "conmon-rs", "tests"] {
        walk(&root().join(place), &mut files);
    }
    files.push(root().join("build.rs"));
    files.sort();
    let sources: Vec<Source> = files.iter().map(|file| read(file)).collect();
    assert!(
        sources.len() > 100,
        "the walk finds the project: {}",
        sources.len()
    );
    sources
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            walk(&path, files);
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
}

fn read(file: &Path) -> Source {
    let text = std::fs::read_to_string(file).unwrap();
    let path = file
        .strip_prefix(root())
        .unwrap()
        .to_string_lossy()
        .into_owned();
    Source {
        path,
        code: blank(&text),
        text,
    }
}

/// Runs a command of the toolchain that runs this test, in the project, and returns what it printed.
pub fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cargo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let whole = |at: usize| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !part(before) && (!part(after) || word.ends_with(':') || word.ends_with('('))
    };
    line.match_indices(word).any(|(at, _)| whole(at))
}

/// Replaces comments and literals by spaces. Knows what our code uses: line and nested block
/// comments, strings, raw and byte strings, characters as opposed to lifetimes.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = literal_end(&chars, i).unwrap_or(i);
        if end > i {
            out.extend(
                chars[i..end]
                    .iter()
                    .map(|c| if *c == '\n' { '\n' } else { ' ' }),
            );
            i = end;
        } else {
            out.push(chars[i]);
            i += 1;
        }
    }
    out
}

/// The end of the comment or literal that starts here, if one does.
fn literal_end(chars: &[char], at: usize) -> Option<usize> {
    let next = |n: usize| chars.get(at + n).copied().unwrap_or('\0');
    let in_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match chars[at] {
        '/' if next(1) == '/' => Some(find(chars, at, |c, i| c[i] == '\n')),
        '/' if next(1) == '*' => Some(block_comment(chars, at)),
        '"' => Some(quoted(chars, at + 1)),
        'r' | 'b' | 'c' if !in_word => prefixed(chars, at),
        '\'' if next(1) == '\\' => Some(find(chars, at + 3, |c, i| c[i] == '\'') + 1),
        '\'' if next(2) == '\'' => Some(at + 3),
        _ => None,
    }
}

fn find(chars: &[char], from: usize, found: impl Fn(&[char], usize) -> bool) -> usize {
    (from..chars.len())
        .find(|i| found(chars, *i))
        .unwrap_or(chars.len())
}

fn quoted(chars: &[char], from: usize) -> usize {
    let mut i = from;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

fn block_comment(chars: &[char], from: usize) -> usize {
    let (mut depth, mut i) = (0, from);
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

/// `b"..."`, `c"..."`, `r"..."`, `br#"..."#`, `b'x'`.
fn prefixed(chars: &[char], at: usize) -> Option<usize> {
    let mut i = at;
    while i < chars.len() && matches!(chars[i], 'r' | 'b' | 'c') && i - at < 2 {
        i += 1;
    }
    let raw = chars[at..i].contains(&'r');
    let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
    match chars.get(i + hashes) {
        Some('"') if raw => {
            let close: Vec<char> = std::iter::once('"').chain(vec!['#'; hashes]).collect();
            let body = i + hashes + 1;
            Some(find(chars, body, |c, i| c[i..].starts_with(&close)) + close.len())
        }
        Some('"') if hashes == 0 => Some(quoted(chars, i + 1)),
        Some('\'') if chars[at] == 'b' && i == at + 1 && hashes == 0 => literal_end(chars, i),
        _ => None,
    }
}

#[test]
fn comments_and_literals_are_no_code() {
    let text = concat!(
        "let a = \"sled \\\" sled\"; // sled\n",
        "/* sled /* sled */ sled */ let b = r#\"sled \" sled\"#;\n",
        "let c: &'static str = b\"sled\"; let d = ('\\'', '\"', 'x'); sled::open();\n",
    );
    let blanked = blank(text);
    assert_eq!(blanked.lines().count(), 3);
    assert_eq!(blanked.matches("sled").count(), 1, "{blanked}");
    assert!(blanked.contains("&'static str"), "{blanked}");
    assert!(has_word("sled::open()", "sled") && has_word("a = env::var(x)", "env::var("));
    assert!(!has_word("tossled", "sled") && !has_word("sled_like", "sled"));
}
