//! What control files say, as functions on their text. A line that makes no sense is passed over:
//! kernels add lines, and a figure that is missing is better than a list that fails.

use super::{DeviceIo, Pressure, Share};

/// v1 says "unlimited" by the largest multiple of a page.
const V1_UNLIMITED: u64 = 1 << 62;

/// The value on the line `name value`.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// A file of one number; `max`, and what v1 has in its place, is no number.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim()
        .parse()
        .ok()
        .filter(|value| *value < V1_UNLIMITED)
}

/// v1's quota and v2's: negative and `max` stand for none.
pub(super) fn quota(text: &str) -> Option<u64> {
    number(text.split_whitespace().next()?)
}

/// The second word of `cpu.max`.
pub(super) fn period(text: &str) -> Option<u64> {
    number(text.split_whitespace().nth(1)?)
}

/// A pressure file: lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let share = |kind: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let value = |name: &str| {
            line.split(' ')
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Share {
            total_us: value("total")?.parse().ok()?,
            avg10: value("avg10").and_then(hundredths)?,
            avg60: value("avg60").and_then(hundredths)?,
            avg300: value("avg300").and_then(hundredths)?,
        })
    };
    Some(Pressure {
        some: share("some")?,
        // Before 5.13 there was no such line for CPU.
        full: share("full").unwrap_or_default(),
    })
}

/// `12.34` as 1234.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.')?;
    if fraction.len() != 2 {
        return None;
    }
    let (whole, fraction): (u32, u32) = (whole.parse().ok()?, fraction.parse().ok()?);
    whole.checked_mul(100)?.checked_add(fraction)
}

/// Which half of [`DeviceIo`] a v1 file fills.
#[derive(Clone, Copy)]
pub(super) enum Half {
    Bytes,
    Operations,
}

/// A v1 file: lines `8:0 Read 4096`, one for each device and kind.
pub(super) fn blkio(text: &str, half: Half, devices: &mut Vec<DeviceIo>) {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let device = words.next().and_then(device_number);
        let (Some(numbers), Some(kind)) = (device, words.next()) else {
            continue;
        };
        let Some(value) = words.next().and_then(|word| word.parse().ok()) else {
            continue;
        };
        let device = entry(devices, numbers);
        match (kind, half) {
            ("Read", Half::Bytes) => device.read_bytes = value,
            ("Write", Half::Bytes) => device.written_bytes = value,
            ("Read", Half::Operations) => device.reads = value,
            ("Write", Half::Operations) => device.writes = value,
            _ => {}
        }
    }
}

/// v2's `io.stat`: lines `8:0 rbytes=1 wbytes=2 rios=3 wios=4 ...`.
pub(super) fn io_stat(text: &str, devices: &mut Vec<DeviceIo>) {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(numbers) = words.next().and_then(device_number) else {
            continue;
        };
        let device = entry(devices, numbers);
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => device.read_bytes = value,
                "wbytes" => device.written_bytes = value,
                "rios" => device.reads = value,
                "wios" => device.writes = value,
                _ => {}
            }
        }
    }
}

fn device_number(word: &str) -> Option<(u32, u32)> {
    let (major, minor) = word.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn entry(devices: &mut Vec<DeviceIo>, (major, minor): (u32, u32)) -> &mut DeviceIo {
    let known = devices
        .iter()
        .position(|device| (device.major, device.minor) == (major, minor));
    let at = known.unwrap_or_else(|| {
        devices.push(DeviceIo {
            major,
            minor,
            ..DeviceIo::default()
        });
        devices.len() - 1
    });
    &mut devices[at]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_whole_words_at_the_start_of_a_line() {
        let text = "cache 1\ntotal_cache 2\nrss 3\nrss_huge 4\nbad x\nneg -1\nbig 18446744073709551616\nlast 9";
        for (name, value) in [
            ("cache", Some(1)),
            ("total_cache", Some(2)),
            ("rss", Some(3)),
            ("last", Some(9)),
            ("bad", None),
            ("neg", None),
            ("big", None),
            ("absent", None),
            ("", None),
        ] {
            assert_eq!(field(text, name), value, "{name}");
        }
    }

    #[test]
    fn limits_of_both_versions() {
        for (text, value) in [
            ("0\n", Some(0)),
            ("1048576\n", Some(1_048_576)),
            ("max\n", None),
            ("9223372036854771712\n", None),
            ("-1\n", None),
            ("", None),
            ("\u{0}\n", None),
        ] {
            assert_eq!(number(text), value, "{text:?}");
        }
        for (text, expected) in [
            ("max 100000\n", (None, Some(100_000))),
            ("20000 100000\n", (Some(20_000), Some(100_000))),
            ("-1\n", (None, None)),
            ("20000\n", (Some(20_000), None)),
            ("", (None, None)),
        ] {
            assert_eq!((quota(text), period(text)), expected, "{text:?}");
        }
    }

    #[test]
    fn pressure_is_read_with_and_without_full() {
        let some = "some avg10=1.50 avg60=0.07 avg300=100.00 total=123456\n";
        let full = "full avg10=0.01 avg60=0.00 avg300=0.00 total=7\n";
        let both = pressure(&format!("{some}{full}")).unwrap();
        assert_eq!(
            (both.some.avg10, both.some.avg60, both.some.avg300),
            (150, 7, 10_000)
        );
        assert_eq!((both.some.total_us, both.full.total_us), (123_456, 7));
        assert_eq!(pressure(some).unwrap().full, Share::default());
        for bad in [
            "",
            full,
            "some",
            "some avg10=1 avg60=0.00 avg300=0.00 total=1",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=x",
            "some avg10=0.000 avg60=0.00 avg300=0.00 total=1",
            "some avg10=99999999999.00 avg60=0.00 avg300=0.00 total=1",
        ] {
            assert_eq!(pressure(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn both_forms_of_block_io_say_the_same() {
        let mut v1 = Vec::new();
        let bytes = "8:0 Read 10\n8:0 Write 20\n8:0 Sync 5\n8:0 Total 30\n8:16 Read 1\nTotal 31\nx\n8:0\n9:a Read 3\n";
        blkio(bytes, Half::Bytes, &mut v1);
        blkio(
            "8:0 Read 2\n8:0 Write 3\nTotal 5\n",
            Half::Operations,
            &mut v1,
        );
        let mut v2 = Vec::new();
        io_stat(
            "8:0 rbytes=10 wbytes=20 rios=2 wios=3 dbytes=0 dios=0\n8:16 rbytes=1 junk =x wios=\n\nnone\n",
            &mut v2,
        );
        assert_eq!(v1, v2);
        assert_eq!(v1.len(), 2);
        assert_eq!((v1[0].read_bytes, v1[0].writes), (10, 3));
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,80}([ =:\n]{0,3}[a-z0-9.=: -]{0,40}){0,6}") {
            let _ = (field(&text, "some"), number(&text), quota(&text), period(&text), pressure(&text));
            let mut devices = Vec::new();
            blkio(&text, Half::Bytes, &mut devices);
            io_stat(&text, &mut devices);
        }
    }
}
