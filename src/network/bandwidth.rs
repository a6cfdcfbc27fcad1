//! Bandwidth annotations of a pod, as the `bandwidth` capability wants them. Pure.

use std::collections::BTreeMap;

use super::error::NetworkError;

/// Annotation with the limit on what the pod receives.
pub const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// Annotation with the limit on what the pod sends.
pub const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// Kubernetes accepts limits from 1 kbit/s to 1 Pbit/s.
const MIN: u64 = 1_000;
const MAX: u64 = 1_000_000_000_000_000;
/// The plugin wants a burst with every rate and annotations name none: what it takes at most (bits).
const BURST: u64 = u32::MAX as u64;

/// Limits in bits per second; absent means unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// What the pod receives.
    pub ingress: Option<u64>,
    /// What the pod sends.
    pub egress: Option<u64>,
}

impl Bandwidth {
    /// From a pod's annotations.
    ///
    /// # Errors
    /// If an annotation is no quantity, or outside of 1k to 1P.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Self, NetworkError> {
        let limit = |field: &'static str| {
            annotations
                .get(field)
                .map(|text| {
                    parse_quantity(text)
                        .filter(|rate| (MIN..=MAX).contains(rate))
                        .ok_or_else(|| NetworkError::Request {
                            field,
                            problem: format!(
                                "{:?} is no rate from 1k to 1P",
                                text.chars().take(40).collect::<String>()
                            ),
                        })
                })
                .transpose()
        };
        Ok(Self {
            ingress: limit(INGRESS)?,
            egress: limit(EGRESS)?,
        })
    }

    /// The value of the capability, or nothing if there is no limit.
    #[must_use]
    pub fn to_json(self) -> Option<serde_json::Value> {
        if self == Self::default() {
            return None;
        }
        let mut object = serde_json::Map::new();
        for (name, rate) in [("ingress", self.ingress), ("egress", self.egress)] {
            if let Some(rate) = rate {
                object.insert(format!("{name}Rate"), rate.into());
                object.insert(format!("{name}Burst"), BURST.into());
            }
        }
        Some(serde_json::Value::Object(object))
    }
}

/// A Kubernetes quantity as a whole number: digits with an optional fraction and one of the
/// suffixes `k M G T P E`, `Ki Mi Gi Ti Pi Ei`, `m` (thousandths, rounded up) or an exponent.
#[must_use]
pub fn parse_quantity(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    if whole.len() > 19 || fraction.len() > 15 {
        return None;
    }
    let (multiplier, divisor): (u128, u128) = match suffix {
        "" => (1, 1),
        "m" => (1, 1000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: u32 = exponent
                .strip_prefix(['e', 'E'])?
                .parse()
                .ok()
                .filter(|p| *p <= 18)?;
            (10_u128.pow(power), 1)
        }
    };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let written: u128 = format!("{whole}{fraction}").parse().ok()?;
    let value = written.checked_mul(multiplier)?.div_ceil(scale * divisor);
    u64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, value) in [
            ("10M", Some(10_000_000)),
            ("1.5k", Some(1500)),
            ("1Ki", Some(1024)),
            ("2e3", Some(2000)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("1500m", Some(2)),
            (".5k", Some(500)),
            ("5", Some(5)),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("-1", None),
            ("1X", None),
            ("1e99", None),
            ("M", None),
            ("99999999999999999999", None),
            ("9999999999999999999E", None),
        ] {
            assert_eq!(parse_quantity(text), value, "{text:?}");
        }
    }

    #[test]
    fn annotations_become_rates_with_bursts() {
        let annotations = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        let none = Bandwidth::from_annotations(&annotations(&[("other", "x")])).unwrap();
        assert_eq!(none.to_json(), None);
        let one = Bandwidth::from_annotations(&annotations(&[(INGRESS, "1M")])).unwrap();
        let json = one.to_json().unwrap();
        assert_eq!(
            (json["ingressRate"].as_u64(), json.get("egressRate")),
            (Some(1_000_000), None)
        );
        for refused in ["10", "2P", "fast", ""] {
            let error =
                Bandwidth::from_annotations(&annotations(&[(EGRESS, refused)])).unwrap_err();
            assert!(error.to_string().starts_with(EGRESS), "{error}");
        }
    }
}
