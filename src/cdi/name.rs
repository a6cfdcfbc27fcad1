//! Names of CDI devices: `vendor.com/class=name`.

/// Longest part of a name.
const MAX_PART: usize = 253;

/// A qualified name, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a> {
    /// `vendor.com/class`, what a spec file calls its kind.
    pub kind: &'a str,
    /// The device of that kind.
    pub device: &'a str,
}

/// Reads a qualified name.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Name<'_>, &'static str> {
    let (kind, device) = text
        .split_once('=')
        .ok_or("must be of the form vendor.com/class=name")?;
    self::kind(kind)?;
    self::device(device)?;
    Ok(Name { kind, device })
}

/// Checks a kind and splits it into vendor and class.
///
/// # Errors
/// What is wrong with it.
pub fn kind(text: &str) -> Result<(&str, &str), &'static str> {
    let (vendor, class) = text
        .split_once('/')
        .ok_or("must name a vendor and a class, vendor.com/class")?;
    if !part(vendor, "_-.", false) {
        return Err("must have a vendor of letters, digits and _ - . that begins with a letter");
    }
    if !part(class, "_-.", false) {
        return Err("must have a class of letters, digits and _ - . that begins with a letter");
    }
    Ok((vendor, class))
}

/// Checks the name of a device within its kind.
///
/// # Errors
/// What is wrong with it.
pub fn device(text: &str) -> Result<(), &'static str> {
    if part(text, "_-.:", true) {
        Ok(())
    } else {
        Err(
            "must have a device name of letters, digits and _ - . : that begins and ends with a \
             letter or digit",
        )
    }
}

fn part(text: &str, others: &str, digit_first: bool) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
    let first = |c: char| c.is_ascii_alphabetic() || (digit_first && c.is_ascii_digit());
    text.len() <= MAX_PART
        && text.starts_with(first)
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualified_names_are_told_from_others() {
        let name = parse("nvidia.com/gpu=0:1").unwrap();
        assert_eq!((name.kind, name.device), ("nvidia.com/gpu", "0:1"));
        for text in ["v/c=d", "v-1.x_y/c.d=all", "intel.com/qat=0000:b3:01.0"] {
            parse(text).unwrap_or_else(|problem| panic!("{text}: {problem}"));
        }
        for text in [
            "",
            "gpu0",
            "vendor.com/gpu",
            "vendor.com=gpu",
            "/gpu=0",
            "vendor.com/=0",
            "vendor.com/gpu=",
            "1vendor/gpu=0",
            "vendor.com/1gpu=0",
            "vendor./gpu=0",
            "vendor.com/gpu=-0",
            "vendor.com/gpu=0-",
            "vendor.com/gpu=a/b",
            "vendor.com/gpu=a b",
            "vendor.com/a/b=0",
            "vendor.com/gpu=0=1",
            "vend\u{f6}r.com/gpu=0",
            "../../etc=0",
        ] {
            parse(text).expect_err(text);
        }
        parse(&format!("{}/c=d", "v".repeat(254))).unwrap_err();
    }
}
