//! The built-in profile, from its source table `config/seccomp/default.txt`.

use super::profile::{Action, Arch, Arg, Op, Profile, Rule};
use crate::capability;

const SOURCE: &str = include_str!("../../../../config/seccomp/default.txt");
const EPERM: u16 = 1;

/// The default profile for a container with these capabilities in its bounding set (bit N stands
/// for capability number N).
#[must_use]
pub fn default_profile(caps: u64) -> Profile {
    parse(SOURCE, caps).expect("a test reads the whole table")
}

/// A line of the table that cannot be read.
#[derive(Debug, PartialEq, Eq)]
struct Wrong {
    line: usize,
    why: &'static str,
}

fn parse(source: &str, caps: u64) -> Result<Profile, Wrong> {
    let mut rules: Vec<Rule> = Vec::new();
    for (at, line) in source.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() || words[0].starts_with('#') {
            continue;
        }
        let rule = parse_line(&words, caps).map_err(|why| Wrong { line: at + 1, why })?;
        // Plain grants make one rule, as readers of config.json expect.
        match (rule, rules.first_mut()) {
            (None, _) => {}
            (Some(rule), Some(first)) if is_plain(&rule) && is_plain(first) => {
                let new = rule
                    .names
                    .into_iter()
                    .filter(|name| !first.names.contains(name));
                let new: Vec<_> = new.collect();
                first.names.extend(new);
            }
            (Some(rule), _) => rules.push(rule),
        }
    }
    Ok(Profile {
        default_action: Action::Errno(EPERM),
        architectures: vec![Arch::X86_64, Arch::X86, Arch::X32],
        flags: None,
        rules,
    })
}

fn is_plain(rule: &Rule) -> bool {
    rule.action == Action::Allow && rule.args.is_empty()
}

/// The rule of a line, if it is for these capabilities.
fn parse_line(words: &[&str], caps: u64) -> Result<Option<Rule>, &'static str> {
    let (applies, words) = match words {
        ["when", cap, rest @ ..] => (has(caps, cap)?, rest),
        ["unless", cap, rest @ ..] => (!has(caps, cap)?, rest),
        _ => (true, words),
    };
    let (action, words) = match words {
        ["allow", rest @ ..] => (Action::Allow, rest),
        ["fail", "ENOSYS", rest @ ..] => (Action::Errno(38), rest),
        ["fail", "EPERM", rest @ ..] => (Action::Errno(EPERM), rest),
        _ => return Err("it begins neither with allow nor with fail and a known errno"),
    };
    let (names, conditions) = match words.iter().position(|word| *word == "if") {
        Some(at) => (&words[..at], &words[at + 1..]),
        None => (words, &[][..]),
    };
    if names.is_empty() {
        return Err("it names no call");
    }
    let conditions = conditions.split(|word| *word == "and");
    let args = match words.contains(&"if") {
        true => conditions
            .map(parse_condition)
            .collect::<Result<Vec<_>, _>>()?,
        false => Vec::new(),
    };
    let names = names.iter().map(ToString::to_string).collect();
    Ok(applies.then_some(Rule {
        names,
        action,
        args,
    }))
}

fn has(caps: u64, name: &str) -> Result<bool, &'static str> {
    let bit = capability::prefixed(name).ok_or("it names an unknown capability")?;
    Ok(caps & 1 << bit != 0)
}

fn parse_condition(words: &[&str]) -> Result<Arg, &'static str> {
    const WRONG: &str = "a condition is not argN OPERATOR VALUE";
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).map_err(|_| WRONG),
        None => text.parse().map_err(|_| WRONG),
    };
    let index = |word: &str| match word.strip_prefix("arg").map(str::parse) {
        Some(Ok(index)) if index < 6 => Ok(index),
        _ => Err(WRONG),
    };
    match words {
        [arg, "&", mask, "==", value] => Ok(Arg {
            index: index(arg)?,
            value: number(mask)?,
            value_two: number(value)?,
            op: Op::MaskedEq,
        }),
        [arg, op, value] => {
            let op = match *op {
                "==" => Op::Eq,
                "!=" => Op::Ne,
                "<" => Op::Lt,
                "<=" => Op::Le,
                ">" => Op::Gt,
                ">=" => Op::Ge,
                _ => return Err(WRONG),
            };
            Ok(Arg {
                index: index(arg)?,
                value: number(value)?,
                value_two: 0,
                op,
            })
        }
        _ => Err(WRONG),
    }
}

#[cfg(test)]
mod tests {
    use super::super::syscalls::SYSCALLS;
    use super::*;

    #[test]
    fn the_whole_table_is_understood_and_names_no_unknown_call() {
        for caps in [0, u64::MAX] {
            let profile = parse(SOURCE, caps).unwrap();
            for name in profile.rules.iter().flat_map(|rule| &rule.names) {
                // The one name that i386 programs know only from their C library.
                let known = SYSCALLS.iter().any(|row| row.0 == name);
                assert!(
                    known || super::super::syscalls::multiplexed(name).is_some(),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn no_call_is_named_twice_without_conditions() {
        let words = SOURCE
            .lines()
            .filter(|line| line.starts_with("allow ") && !line.contains(" if "));
        let names: Vec<_> = words
            .flat_map(|line| line.split_whitespace().skip(1))
            .collect();
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }

    #[test]
    fn wrong_lines_are_told() {
        let why = |line: &str| parse(line, 0).unwrap_err().why;
        assert!(why("permit read").contains("allow"));
        assert!(why("allow").contains("no call"));
        assert!(why("when CAP_NOTHING allow read").contains("capability"));
        for condition in ["arg6 == 1", "arg0 = 1", "arg0 == x", "arg0 ==", ""] {
            assert!(why(&format!("allow read if {condition}")).contains("condition"));
        }
    }
}
